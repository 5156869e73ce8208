"""Send the message on standard input with smtplib: arguments MX, sender, recipient.

Without arguments, print the version of Python.
"""

import email
import email.policy
import platform
import smtplib
import sys

if len(sys.argv) == 1:
    print(platform.python_version())  # noqa: T201 - this is a program
    sys.exit()
mx, sender, recipient = sys.argv[1:]
message = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.SMTPUTF8)
with smtplib.SMTP(mx, 25, timeout=10) as server:
    server.send_message(message, sender, [recipient])
