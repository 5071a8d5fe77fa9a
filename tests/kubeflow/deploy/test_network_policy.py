"""The network policy, asked whom a worker may speak to."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.kubeflow.deploy.rendered import OVERLAYS, the

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def allows(policy: dict[str, Any], address: str, port: int, protocol: str = "TCP") -> bool:
    """Whether a packet to an address outside of the cluster may leave."""
    return any(
        {"protocol": protocol, "port": port} in rule["ports"]
        and any(_is_in(address, peer["ipBlock"]) for peer in rule["to"] if "ipBlock" in peer)
        for rule in policy["spec"]["egress"]
    )


def _is_in(address: str, block: dict[str, Any]) -> bool:
    found = ip_address(address)
    return found in ip_network(block["cidr"]) and not any(
        found in ip_network(part) for part in block.get("except", ())
    )


def test_nothing_is_allowed_that_is_not_named(overlay):
    spec = the(overlay, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"] and spec["ingress"] == []
    # A rule without ports or peers would allow all of them.
    assert all(rule["ports"] and rule["to"] for rule in spec["egress"])
    assert all(peer for rule in spec["egress"] for peer in rule["to"])


def test_s3_on_a_public_address_is_reached(overlay):
    policy = the(overlay, "NetworkPolicy")
    assert allows(policy, "52.218.36.75", 443)
    assert allows(policy, "2600:1fa0:8000::1", 443)
    assert not allows(policy, "52.218.36.75", 80)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",  # metadata of most clouds
        "169.254.170.2",  # credentials of a container's role
        "fd00:ec2::254",
        "fe80::1",
        "64:ff9b::a9fe:a9fe",  # the first, through NAT64
        "::ffff:169.254.169.254",
        "10.0.0.1",  # the cluster: neighbours, and the Kubernetes API
        "172.20.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "127.0.0.1",
        "::1",
        "fc00::1",
    ],
)
def test_metadata_and_private_addresses_are_not(overlay, address):
    policy = the(overlay, "NetworkPolicy")
    assert not any(allows(policy, address, port) for port in (80, 443, 5000, 8080))


def test_dns_is_asked_in_the_cluster_only_and_whatever_labels_the_overlay_gives(overlay):
    """kustomize adds an overlay's labels to matchLabels: nobody's DNS has them."""
    policy = the(overlay, "NetworkPolicy")
    (cluster, node) = policy["spec"]["egress"][0]["to"]
    assert cluster == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {
            "matchExpressions": [{"key": "k8s-app", "operator": "In", "values": ["kube-dns"]}]
        },
    }
    assert node == {"ipBlock": {"cidr": "169.254.20.10/32"}}
    assert allows(policy, "169.254.20.10", 53, "UDP") and allows(policy, "169.254.20.10", 53)
    assert not allows(policy, "8.8.8.8", 53, "UDP")


def test_mlflow_is_a_namespace(overlay):
    (peer,) = the(overlay, "NetworkPolicy")["spec"]["egress"][2]["to"]
    assert peer == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "mlflow"}}}


def test_an_exception_lies_within_its_block(overlay):
    """Else an API server refuses the policy."""
    for rule in the(overlay, "NetworkPolicy")["spec"]["egress"]:
        for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
            whole = ip_network(block["cidr"])
            for part in block.get("except", ()):
                assert ip_network(part).subnet_of(whole) and ip_network(part) != whole
