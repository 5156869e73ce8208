"""Send the message on standard input with smtplib: arguments MX, sender, recipient.

Without arguments, print its version.
"""

import platform
import smtplib
import sys

if len(sys.argv) == 1:
    print(platform.python_version())  # noqa: T201 - this is a program
    sys.exit()
mx, sender, recipient = sys.argv[1:]
with smtplib.SMTP(mx, 25, timeout=10) as server:
    server.sendmail(sender, recipient, sys.stdin.read())
