dnl To the end of /etc/mail/sendmail.mc, after the MAILER lines; then run make -C /etc/mail and restart sendmail.
dnl The directory of the socket must not be writable for everybody. The columns of a rule are parted by tabs.
LOCAL_CONFIG
Knullmx socket unix:/run/nullsmtpd/relay

LOCAL_RULESETS
SLocal_check_rcpt
# mail for this host itself, or without a domain: nothing to ask
R<$+ @ $=w>		$@ $1
R<$+ @ $+>		$: $(nullmx $1@$2 $: NOTFOUND $)
R556 $*			$#error $@ 5.1.10 $: 556 Domain does not accept mail
