#!/bin/sh
# The only program of the demonstration guest: brings the devices up, starts the loads named on the
# kernel command line (g.KEY=VALUE) and then takes orders, one a line, on the serial console ttyS0.
# It prints "GUEST READY up=SECONDS" once, and "DONE ORDER rc=STATUS DETAILS" after every order.
#
#   at boot                  as an order                    what it does
#   g.cpu=P                  cpu P [VCPU]                   burn P % of one vCPU (0 stops)
#   g.write=B                wrate B                        write B bytes a second to vda (0 stops)
#   g.pings=A,M,S,I          pings A M S I                  echo request of S bytes to A (MAC M) every I s
#   g.mem=M                  mem M                          hold M MiB in tmpfs (0 lets go)
#   g.ip=A/P                 ip A/P                         address of eth0
#                            write B [BLOCK] [DISK]         write exactly B bytes, O_DIRECT
#                            read B [BLOCK] [DISK]          read exactly B bytes, O_DIRECT
#                            flush [DISK]                   one flush (and one 4096-byte write)
#                            ping A M N S [I]               exactly N echo requests of S bytes, N*(S+42) bytes out
#                            tcp A PORT B                   send B bytes by TCP
#   g.acpi=WORD              acpi poweroff|ignore|delay:S   what the power button does
#   g.agent=WORD             agent 1|slow:S|mute            how the guest agent answers; where a further archive
#                            agent gone                     brought Debian's qemu-ga: 1, mute, gone (not running)
#   g.hostname=NAME                                        the guest's host name
#   g.mount=DISK                                           a disk with ext4 or an ISO image, to be mounted at /mnt
#                            file B                         write B bytes to a file there, and wait for the disk
#   g.hang=1                                                never print READY
#                            idle poweroff reboot panic stat
export PATH=/bin
QEMU_GA=/usr/sbin/qemu-ga
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /run
mount -t tmpfs -o size=95% tmpfs /run
while read -r module; do insmod "/modules/$module" 2>/dev/null; done < /modules/order
mkdir -p /cg
mount -t cgroup2 cg /cg
echo +cpu > /cg/cgroup.subtree_control
mkdir -p /cg/load

say() { echo "$@" > /dev/ttyS0; }
uptime_s() { cut -d' ' -f1 /proc/uptime; }

boot_option() {
  for word in $(cat /proc/cmdline); do
    case $word in "g.$1="*) echo "${word#*=}" ;; esac
  done | tail -n1
}

stop_load() {
  [ -f "/run/$1.pid" ] && kill -9 "$(cat "/run/$1.pid")" 2>/dev/null
  rm -f "/run/$1.pid"
}

burn_cpu() {
  stop_load cpu
  [ "${1:-0}" = 0 ] && return 0
  # A period of 20 ms spreads the load evenly, so that any 10 s window holds the same share.
  if [ "$1" -ge 100 ]; then echo "max 20000" > /cg/load/cpu.max
  else echo "$(($1 * 200)) 20000" > /cg/load/cpu.max; fi
  taskset -c "${2:-0}" sh -c 'while :; do :; done' &
  echo $! > /run/cpu.pid
  echo $! > /cg/load/cgroup.procs
}

copy_exactly() { # SOURCE TARGET BYTES BLOCK DD_FLAGS
  count=$(($3 / $4))
  [ $((count * $4)) -eq "$3" ] || return 3
  dd if="$1" of="$2" bs="$4" count="$count" $5 status=none
}

write_steadily() {
  stop_load wrate
  [ "${1:-0}" = 0 ] && return 0
  # A tenth of the rate at a time, due by an absolute schedule: a late block does not lower the mean.
  sh -c '
    block=$(($0 / 10 / 4096 * 4096))
    [ $block -ge 4096 ] || block=4096
    period_us=$((block * 1000000 / $0))
    now_us() { read -r up _ < /proc/uptime; echo $((${up%.*}${up#*.} * 10000)); }
    due=$(now_us)
    while :; do
      dd if=/dev/zero of=/dev/vda bs=$block count=1 oflag=direct conv=notrunc status=none
      due=$((due + period_us))
      wait_us=$((due - $(now_us)))
      [ $wait_us -gt 0 ] && usleep $wait_us
    done' "$1" &
  echo $! > /run/wrate.pid
}

hold_memory() {
  rm -f /run/hold
  [ "${1:-0}" = 0 ] || dd if=/dev/zero of=/run/hold bs=1M count="$1" status=none
}

set_address() {
  ip link set lo up
  ip addr flush dev eth0 2>/dev/null
  ip addr add "$1" dev eth0 && ip link set eth0 up
}

# The neighbour is given, not asked for by ARP: an order's packets are then the only ones.
neighbour() { arp -i eth0 -s "$1" "$2"; }

ping_exactly() { # ADDRESS MAC COUNT SIZE [INTERVAL]
  neighbour "$1" "$2" || return
  ping -q -c "$3" -s "$4" -i "${5:-0.05}" -W 1 "$1" > /run/ping 2>&1
  status=$?
  detail=$(grep -o '[0-9]* packets received' /run/ping)
  return $status
}

ping_steadily() { # ADDRESS MAC SIZE INTERVAL
  stop_load pings
  [ "${1:-0}" = 0 ] && return 0
  neighbour "$1" "$2" || return
  ping -q -s "$3" -i "$4" "$1" > /dev/null 2>&1 &
  echo $! > /run/pings.pid
}

print_statistics() {
  for file in stat meminfo diskstats net/dev uptime; do
    say "== $file"
    head -n 24 "/proc/$file" > /dev/ttyS0
  done
}

power_button() {
  for event in /sys/class/input/event*; do
    grep -q 'Power Button' "$event/device/name" 2>/dev/null && button="/dev/input/${event##*/}"
  done
  [ -n "$button" ] || return
  while :; do
    dd if="$button" of=/dev/null bs=24 count=1 status=none || sleep 1
    answer=$(cat /run/acpi)
    say "ACPI power button ($answer)"
    case $answer in
      ignore) ;;
      delay:*) sleep "${answer#delay:}"; poweroff -f ;;
      *) poweroff -f ;;
    esac
    sleep 0.3
  done
}

agent_port() {
  for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] && echo "/dev/${port##*/}"
  done
}

real_agent() { # 1|mute|gone
  pid=$(cat /run/qemu-ga.pid 2>/dev/null)
  case $1 in
    mute) kill -STOP "$pid" ;;
    gone) kill -9 "$pid" && rm -f /run/qemu-ga.pid ;;
    *)
      [ -n "$pid" ] && kill -CONT "$pid" && return
      "$QEMU_GA" --method=virtio-serial --path="$(agent_port)" --statedir=/run 2> /run/qemu-ga.log &
      echo $! > /run/qemu-ga.pid
      ;;
  esac
}

agent_answer() { # ID REQUEST
  case $2 in
    *guest-sync-delimited*) printf '\377{"return": %s}\n' "$1" ;;
    *guest-sync*) printf '{"return": %s}\n' "$1" ;;
    *guest-ping*) printf '{"return": {}}\n' ;;
    *guest-info*) printf '{"return": {"version": "0.0-demonstration", "supported_commands": [{"name":"guest-ping","enabled":true,"success-response":true},{"name":"guest-shutdown","enabled":true,"success-response":false}]}}\n' ;;
    *guest-network-get-interfaces*) printf '{"return": [{"name":"lo","hardware-address":"00:00:00:00:00:00"},{"name":"eth0","hardware-address":"%s"}]}\n' "$(cat /sys/class/net/eth0/address)" ;;
    *guest-shutdown*reboot*) say "AGENT reboot"; reboot -f ;;
    *guest-shutdown*) say "AGENT shutdown"; poweroff -f ;;
    *execute*) printf '{"error": {"class": "CommandNotFound", "desc": "unknown to the demonstration guest"}}\n' ;;
  esac
}

agent() {
  port=$(agent_port)
  [ -n "$port" ] || return
  if [ -x "$QEMU_GA" ]; then real_agent "$(cat /run/agent)"; return; fi
  exec 3<>"$port"
  while :; do
    # Nobody is connected at the host's end: wait for one.
    read -r request <&3 || { sleep 0.1; continue; }
    request=$(echo "$request" | tr -d '\377\r')
    manner=$(cat /run/agent)
    case $manner in mute | 0) continue ;; slow:*) sleep "${manner#slow:}" ;; esac
    agent_answer "$(echo "$request" | sed -n 's/.*"id" *: *\([0-9]*\).*/\1/p')" "$request" >&3
  done
}

order() {
  set -- $1
  name=$1
  detail=
  [ -n "$name" ] || return
  shift
  case $name in
    cpu) burn_cpu "$@" ;;
    wrate) write_steadily "$1" ;;
    pings) ping_steadily "$@" ;;
    mem) hold_memory "$1" ;;
    ip) set_address "$1" ;;
    acpi) echo "$1" > /run/acpi ;;
    agent) echo "$1" > /run/agent; if [ -x "$QEMU_GA" ]; then real_agent "$1"; fi ;;
    write) copy_exactly /dev/zero "/dev/${3:-vda}" "$1" "${2:-65536}" 'oflag=direct conv=notrunc' ;;
    read) copy_exactly "/dev/${3:-vda}" /dev/null "$1" "${2:-65536}" iflag=direct ;;
    flush) dd if=/dev/zero of="/dev/${1:-vda}" bs=512 count=1 conv=notrunc,fsync status=none ;;
    file) dd if=/dev/zero of=/mnt/file bs="$1" count=1 conv=fsync status=none ;;
    ping) ping_exactly "$@" ;;
    tcp) head -c "$3" /dev/zero | nc -w 5 "$1" "$2" ;;
    idle) stop_load cpu; stop_load wrate; stop_load pings; rm -f /run/hold ;;
    stat) print_statistics ;;
    poweroff) say "DONE poweroff rc=0"; poweroff -f ;;
    reboot) say "DONE reboot rc=0"; reboot -f ;;
    panic) echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger ;;
    *) say "DONE $name rc=127 unknown order"; return ;;
  esac
  say "DONE $name rc=$? $detail up=$(uptime_s)"
}

stty -F /dev/ttyS0 raw -echo
value=$(boot_option acpi); echo "${value:-poweroff}" > /run/acpi
value=$(boot_option agent); echo "${value:-1}" > /run/agent
power_button &
agent &
value=$(boot_option hostname); [ -n "$value" ] && hostname "$value"
value=$(boot_option mount); [ -n "$value" ] && mkdir -p /mnt && {
  mount -t ext4 "/dev/$value" /mnt 2>/dev/null || mount -t iso9660 -o ro "/dev/$value" /mnt
}
value=$(boot_option ip); [ -n "$value" ] && set_address "$value"
value=$(boot_option mem); [ -n "$value" ] && hold_memory "$value"
value=$(boot_option cpu); [ -n "$value" ] && burn_cpu "$value"
value=$(boot_option write); [ -n "$value" ] && write_steadily "$value"
value=$(boot_option pings); [ -n "$value" ] && ping_steadily $(echo "$value" | tr , ' ')
[ -n "$(boot_option hang)" ] && while :; do sleep 3600; done
say "GUEST READY up=$(uptime_s)"
exec 4<>/dev/ttyS0
while :; do
  while read -r line <&4; do order "$(echo "$line" | tr -d '\r')"; done
  sleep 0.2
done
