"""For every test: Ctrl-C works in the processes that tests start, also where the runner was started with it ignored (CI, `&`)."""

import signal

# an ignored signal is inherited through exec; a handler is not, so children begin with the default
signal.signal(signal.SIGINT, signal.default_int_handler)
