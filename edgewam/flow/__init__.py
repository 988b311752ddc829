"""Flow-matching maths: sigma schedules, training draws and weights, solvers as linear tables, RTC prefixes."""
