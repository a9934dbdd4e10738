#!/bin/sh
# Runs as process 1 of new mount, network and PID namespaces: gives the private libvirtd folders and a
# network of its own, says "ready PID" (its number outside), then waits for the end of its input.
# Usage: private-namespaces.sh STATE_FOLDER BRIDGE ADDRESS/PREFIX MAC
set -eu
state=$1
bridge=$2
address=$3
mac=$4

# Read before /proc is mounted anew: the number that the outside knows this process by.
read -r outside_pid _ < /proc/self/stat
mount -t proc proc /proc
mount -t sysfs sysfs /sys

# An empty /run hides the system's libvirt, D-Bus, systemd-machined and firewalld from the private daemon.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/libvirt
mount --bind "$state/run" /run/libvirt
mount --bind "$state/lib" /var/lib/libvirt
mount --bind "$state/log" /var/log/libvirt
mount --bind "$state/cache" /var/cache/libvirt
mount --bind "$state/etc" /etc/libvirt

# IPv6, spanning tree and multicast snooping would add packets that nobody ordered.
for scope in all default; do
  setting=/proc/sys/net/ipv6/conf/$scope/disable_ipv6
  [ ! -e "$setting" ] || echo 1 > "$setting"
done
ip link set lo up
ip link add "$bridge" address "$mac" type bridge stp_state 0 mcast_snooping 0
ip address add "$address" dev "$bridge"
ip link set "$bridge" up

echo "ready $outside_pid"
# SIGCHLD is ignored so that the kernel buries the orphans (every QEMU is one): libvirt takes a zombie
# for a process that refuses to die. The end of input means that the starting process is gone.
exec env --ignore-signal=CHLD cat > /dev/null
