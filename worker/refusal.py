"""Why the worker does not start, and the exit code that says so. Knows no cause; each part raises its own sentence."""


class Refusal(Exception):
    """One line for a person: what happened, which path or value, what to do next."""

    exit_code = 1


class BadConfiguration(Refusal):
    """The model directory, a wish or the memory does not allow a start; trying again changes nothing."""

    exit_code = 78


class Unavailable(Refusal):
    """Something the start needs is taken or absent: the port, the socket, vLLM itself."""

    exit_code = 69
