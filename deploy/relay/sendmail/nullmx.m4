dnl Append to /etc/mail/sendmail.mc, after the MAILER lines; then run make -C /etc/mail and restart sendmail.
dnl The socket's directory must not be writable for everybody. The columns of a rule are separated by tabs.
LOCAL_CONFIG
Knullmx socket unix:/run/nullsmtpd/relay
Knullmxsender socket unix:/run/nullsmtpd/relay

LOCAL_RULESETS
# Addresses without a domain, of this host, and of domains that it relays for, are not looked up.
Snullmx_lookup
R$* < $+ @ $=w > $*		$@ OK
R$* < $+ @ $={VirtHost} > $*	$@ OK
R$* < $+ @ $* $=R > $*		$@ OK
R< recipient > < $+ @ $+ > $*	$: $(nullmx $1@$2 $: NOTFOUND $)
R< sender > < $+ @ $+ > $*	$: $(nullmxsender $1@$2 $: NOTFOUND $)
R556 $*			$#error $@ 5.1.10 $: 556 Domain does not accept mail
R550 $*			$#error $@ 5.7.27 $: 550 Sender address has null MX

SLocal_check_rcpt
R$*			$: $>nullmx_lookup < recipient > $1

SLocal_check_mail
R$*			$: $>nullmx_lookup < sender > $1
