//! The links: a bridge in the control plane's network namespace, one namespace for each node joined to it by
//! a veth pair, and a route to each node's pods. Nothing is joined to the machine's own network, so nothing
//! can leave and no port can clash.

use std::fmt::Write;

use super::layout::{HUB, SERVICES, node_address, pod_addresses};

/// A script for the control plane's namespace that makes everything; `nodes` in the order of their addresses.
pub(crate) fn script<'a>(nodes: impl Iterator<Item = &'a str>) -> String {
    // Without a route to it a Service's address is refused before kube-proxy's rules see the connection.
    let mut script = format!(
        "ip link set lo up
ip link add name node0 type bridge
ip addr add {HUB}/24 dev node0
ip link set node0 up
ip route add {SERVICES} dev node0
echo 1 > /proc/sys/net/ipv4/ip_forward
"
    );
    for (index, node) in nodes.enumerate() {
        let (address, pods) = (node_address(index), pod_addresses(index));
        // Writing to a String can't fail.
        let _ = write!(
            script,
            "ip netns add {node}
ip link add name veth{index} type veth peer name up0 netns {node}
ip link set veth{index} master node0 up
ip -n {node} link set lo up
ip -n {node} addr add {address}/24 dev up0
ip -n {node} link set up0 up
ip -n {node} route add default via {HUB}
nsenter --net=/run/netns/{node} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
ip route add {pods} via {address}
"
        );
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_gets_its_own_address_and_pods() {
        let script = script(["a", "b"].into_iter());
        assert!(
            script.contains("ip -n a addr add 10.77.0.11/24")
                && script.contains("ip route add 10.88.1.0/24 via 10.77.0.11")
        );
        assert!(
            script.contains("ip -n b addr add 10.77.0.12/24")
                && script.contains("ip route add 10.88.2.0/24 via 10.77.0.12")
        );
        assert_eq!(super::script(std::iter::empty()).matches("netns").count(), 0);
    }
}
