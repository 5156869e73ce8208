"""Ask the mail server on port 25 of this host about each recipient that comes as a line; print its reply as JSON.

The message is from the address given as argument, in one transaction which is never completed.
"""

import json
import smtplib
import sys

PATIENCE = 60.0  # seconds

with smtplib.SMTP("127.0.0.1", 25, timeout=PATIENCE) as smtp:
    smtp.ehlo()
    options = ["SMTPUTF8"] if smtp.has_extn("SMTPUTF8") else []
    code, text = smtp.mail(sys.argv[1], options)
    if code != 250:
        sys.exit(f"MAIL: {code} {text.decode()}")
    smtp.command_encoding = "utf-8"  # also where SMTPUTF8 is not offered: some take it all the same
    for line in sys.stdin:
        code, text = smtp.rcpt(line.rstrip("\n"))
        print(json.dumps([code, text.decode()]), flush=True)  # noqa: T201 - this is a program
