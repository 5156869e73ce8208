"""Ask the mail server on port 25 of this host about senders and recipients; print its replies as JSON.

Each line on standard input is a sender and a recipient as JSON. The reply is that to MAIL if it is negative, else that
to RCPT. Successive recipients of one sender belong to one transaction; none is ever completed.
"""

import json
import smtplib
import sys

PATIENCE = 60.0  # seconds

with smtplib.SMTP("127.0.0.1", 25, timeout=PATIENCE) as smtp:
    smtp.ehlo()
    options = ["SMTPUTF8"] if smtp.has_extn("SMTPUTF8") else []
    transaction = None
    for line in sys.stdin:
        sender, recipient = json.loads(line)
        code, text = 250, b""
        if sender != transaction:
            smtp.rset()
            code, text = smtp.mail(sender, options)
            transaction = sender if code == 250 else None
        if code == 250:
            smtp.command_encoding = "utf-8"  # also where SMTPUTF8 is not offered: some take it nevertheless
            code, text = smtp.rcpt(recipient)
        print(json.dumps([code, text.decode()]), flush=True)  # noqa: T201 - this is a program
