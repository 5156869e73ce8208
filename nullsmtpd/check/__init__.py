"""Does a host refuse mail properly? ``nullsmtpd check``, and the functions behind it.

Without arguments it is a container's health check, run every few seconds in little memory: what that needs imports no
event loop, no `re` and no `typing`. What only an operator at a terminal asks for comes on top, when it is asked for.
"""
