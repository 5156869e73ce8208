#!/bin/sh
# The rules of nullsmtpd.nft, for the same reasons, on a host that has only iptables: sh iptables.sh [remove]
#
# Running it again replaces its own rules, which come first; no other rule is touched. Differences from nftables:
# - Each family has a common limit of its own.
# - When a flood from forged addresses has filled the table of hashlimit, new sources are dropped; nft lets them pass.
# - A stateful firewall needs these rules, the second one if its output chain drops by default:
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
		:NULLSMTPD-NEW -
		-A NULLSMTPD -i lo -j RETURN
		$(if [ "$1" = ip6tables ]; then fragments; fi)
		-A NULLSMTPD -p tcp --dport 25 --syn -j NULLSMTPD-NEW
		-A NULLSMTPD-NEW -p tcp -m hashlimit $per_source -j REJECT --reject-with tcp-reset
		-A NULLSMTPD-NEW -m hashlimit $together -j DROP
		-I INPUT -j NULLSMTPD
		COMMIT
	RULES
}

# IPv4 packets are reassembled before the INPUT chain, IPv6 packets after it: see "fragmented" in nullsmtpd.nft.
fragments() {
	cat <<-RULES
		:NULLSMTPD-FRAG -
		-A NULLSMTPD-FRAG -p tcp ! --dport 25 -j RETURN
		-A NULLSMTPD-FRAG ! -p tcp -j RETURN
		-A NULLSMTPD-FRAG -j DROP
		-A NULLSMTPD -m frag --fragfirst --fragmore -j NULLSMTPD-FRAG
	RULES
}

# $1: iptables or ip6tables; $2: table; $3: chain; $4: the built-in chain with a jump to it, if any. A load that failed,
# or somebody's flush, may have left only some of them, so nothing that is missing is an error.
remove_chain() {
	"$1" -w -t "$2" -S "$3" >/dev/null 2>&1 || return 0
	[ -z "${4-}" ] || "$1" -w -t "$2" -D "$4" -j "$3" 2>/dev/null || :
	"$1" -w -t "$2" -F "$3"
	"$1" -w -t "$2" -X "$3"
}

case ${1-} in
'' | remove) ;;
*)
	echo "usage: sh iptables.sh [remove]" >&2
	exit 2
	;;
esac

for family in "iptables 32" "ip6tables 64"; do
	command=${family% *}
	remove_chain "$command" raw NULLSMTPD-IN PREROUTING
	remove_chain "$command" raw NULLSMTPD-OUT OUTPUT
	remove_chain "$command" filter NULLSMTPD INPUT
	remove_chain "$command" filter NULLSMTPD-NEW
	remove_chain "$command" filter NULLSMTPD-FRAG
	if [ "${1-}" != remove ]; then
		set_up "$command" "${family#* }"
	fi
done
