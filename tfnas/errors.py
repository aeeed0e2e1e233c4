"""The one exception that the command line turns into a message without a traceback."""


class UserError(Exception):
    """Something the user can mend: the message names the thing, the value received and the value expected."""
