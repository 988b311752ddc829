"""Jobs that do what real ones may do: end well, fail, hang, end without a result."""
