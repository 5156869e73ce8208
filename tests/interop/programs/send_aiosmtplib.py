"""Send the message on standard input with aiosmtplib: arguments MX, sender, recipient.

Without arguments, print its version.
"""

import asyncio
import email
import email.policy
import sys

import aiosmtplib

if len(sys.argv) == 1:
    print(aiosmtplib.__version__)  # noqa: T201 - this is a program
    sys.exit()
mx, sender, recipient = sys.argv[1:]
message = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.SMTPUTF8)
asyncio.run(aiosmtplib.send(message, sender=sender, recipients=[recipient], hostname=mx, port=25, timeout=10))
