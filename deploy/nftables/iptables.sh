#!/bin/sh
# What nullsmtpd.nft does, for the same reasons, on a host that has iptables alone: sh iptables.sh [remove]
#
# Running it again replaces what it made. No other rule is touched; its own come first. What differs from nftables:
# - A reset can be sent from the input chain only, so the limits are there. Each family has a common limit of its own.
# - When a flood from forged addresses has filled hashlimit's table, further sources are dropped; nft lets them pass.
# - A stateful firewall beside it needs these, the second if its output chain drops what it does not know:
#     -A INPUT -p tcp --dport 25 -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT
#     -A OUTPUT -p tcp --sport 25 -m conntrack --ctstate UNTRACKED -j ACCEPT
set -eu

# $1: iptables or ip6tables; $2: how many bits of an address make a source
set_up() {
	per_source="--hashlimit-name nullsmtpd-$2 --hashlimit-mode srcip --hashlimit-srcmask $2 --hashlimit-above 10/second"
	per_source="$per_source --hashlimit-burst 50 --hashlimit-htable-max 65536 --hashlimit-htable-expire 10000"
	together="--hashlimit-name nullsmtpd-all-$2 --hashlimit-above 20000/second --hashlimit-burst 4096"
	"$1-restore" -w --noflush <<-RULES
		*raw
		:NULLSMTPD-IN -
		:NULLSMTPD-OUT -
		-A NULLSMTPD-IN -p tcp --dport 25 -m addrtype --dst-type LOCAL -j CT --notrack
		-A NULLSMTPD-OUT -p tcp --sport 25 -j CT --notrack
		-A NULLSMTPD-OUT -p tcp --dport 25 -m addrtype --dst-type LOCAL -j CT --notrack
		-I PREROUTING -j NULLSMTPD-IN
		-I OUTPUT -j NULLSMTPD-OUT
		COMMIT
		*filter
		:NULLSMTPD -
		-A NULLSMTPD -p tcp -m hashlimit $per_source -j REJECT --reject-with tcp-reset
		-A NULLSMTPD -m hashlimit $together -j DROP
		-I INPUT ! -i lo -p tcp --dport 25 --syn -j NULLSMTPD
		COMMIT
	RULES
}

# $1: iptables or ip6tables. Each table for itself: a load that failed may have left one of them.
remove() {
	! "$1" -w -t raw -S NULLSMTPD-IN >/dev/null 2>&1 || "$1-restore" -w --noflush <<-RULES
		*raw
		-D PREROUTING -j NULLSMTPD-IN
		-D OUTPUT -j NULLSMTPD-OUT
		-F NULLSMTPD-IN
		-F NULLSMTPD-OUT
		-X NULLSMTPD-IN
		-X NULLSMTPD-OUT
		COMMIT
	RULES
	! "$1" -w -S NULLSMTPD >/dev/null 2>&1 || "$1-restore" -w --noflush <<-RULES
		*filter
		-D INPUT ! -i lo -p tcp --dport 25 --syn -j NULLSMTPD
		-F NULLSMTPD
		-X NULLSMTPD
		COMMIT
	RULES
}

for family in "iptables 32" "ip6tables 64"; do
	command=${family% *}
	remove "$command"
	if [ "${1-}" != remove ]; then
		set_up "$command" "${family#* }"
	fi
done
