#!/bin/sh
# The first program of the machine: loads the modules, makes an RDMA device, runs what the kernel's
# command line asks for, says how it ended, and ends the machine. See xtask/src/rdma.rs.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
problem() { echo "flexkv: PROBLEM $*"; }
asked() { grep -q "$1" /proc/cmdline; }

for module in $(cat /modules/order); do
    insmod "$module" || problem "cannot load $module"
done
ip link set lo up
if asked flexkv=test; then
    # Owners and readers share one device: what they send comes back to it.
    card=wire0
    ip link add $card type dummy
    ip link set $card mtu 4200
    ip addr add 10.9.0.1/24 dev $card
else
    card=eth0
    host=1
    asked flexkv=reader && host=2
    ip addr add 10.9.0.$host/24 dev $card
fi
ip link set $card up || problem "no network interface $card"
rdma link add rxe0 type rxe netdev $card || problem "cannot make the device"
tries=0
until grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state; do
    tries=$((tries + 1))
    [ $tries -gt 100 ] && problem "the device does not become active" && break
    sleep 0.1
done
echo "flexkv: up after $(cat /proc/uptime) s"

if asked canary=panic; then
    echo c >/proc/sysrq-trigger
elif asked canary=hang; then
    sleep 100000
elif asked canary=broken; then
    export FLEXKV_RDMA_CANARY=1
fi
if asked flexkv=test; then
    status=0
    for program in /bin/program*; do
        # shellcheck disable=SC2046 # an argument a line
        $program --test-threads=2 $(cat /etc/arguments) || status=$?
    done
    (exit $status)
elif asked flexkv=owner; then
    /bin/program0 owner 10.9.0.1:7001
else
    /bin/program0 reader 10.9.0.1:7001
fi
echo "FLEXKV-RESULT $?"
poweroff -f
