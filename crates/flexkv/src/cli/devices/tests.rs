//! What is said of devices, usable or not.

use flexkv_rdma::GidReport;

use super::*;

fn device(name: &str, problem: Option<&str>) -> DeviceReport {
    let gid = GidReport {
        index: 1,
        bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 9, 0, 1],
    };
    DeviceReport {
        name: name.to_owned(),
        numa_node: Some(1),
        ports: vec![PortReport {
            number: 1,
            link: Some(Link::Ethernet),
            rate: "100 Gb/sec (4X EDR)".to_owned(),
            lid: 0,
            gid: Some(gid),
            problem: problem.map(str::to_owned),
        }],
        problem: None,
    }
}

fn survey(devices: Vec<DeviceReport>) -> Survey {
    Survey {
        devices,
        problem: None,
    }
}

#[test]
fn every_device_is_told_with_the_reason_why_it_cannot_be_used() {
    let mut closed = device("mlx5_1", None);
    closed.problem = Some("/dev/infiniband/uverbs1 cannot be opened".to_owned());
    let down = device("mlx5_2", Some("is not active but DOWN"));
    let devices = vec![device("mlx5_0", None), closed, down];
    let opens = |name: &str| (name == "mlx5_3").then(|| "unknown to the library".to_owned());
    let report = report(&survey(devices), None, &opens);
    let usable: Vec<_> = report.ports.iter().map(|row| row.usable).collect();
    assert_eq!(usable, [true, false, false]);
    let text = show(&report);
    for words in [
        "mlx5_0",
        "10.9.0.1",
        "100 Gb/sec (4X EDR)",
        "no: /dev/infiniband/uverbs1 cannot be opened",
        "no: is not active but DOWN",
    ] {
        assert!(text.contains(words), "`{words}` is not in\n{text}");
    }
}

#[test]
fn what_a_node_would_use_depends_on_the_build_and_the_library() {
    let machine = survey(vec![device("mlx5_0", None)]);
    let fine = report(&machine, None, &|_| None);
    let broken = report(&machine, None, &|_| Some("no libibverbs".to_owned()));
    assert!(show(&broken).contains("no: no libibverbs"));
    assert_eq!(broken.chosen, None);
    if cfg!(feature = "rdma") {
        assert!(show(&fine).ends_with("a node would use mlx5_0"));
        assert!(show(&broken).ends_with("no RDMA: no device can be used"));
    } else {
        assert!(show(&fine).ends_with("is built without RDMA (cargo's feature `rdma`)"));
        assert_eq!(fine.chosen, None);
    }
}

#[test]
fn a_host_without_devices_says_what_is_missing() {
    let nothing = Survey {
        devices: Vec::new(),
        problem: Some("the kernel knows no RDMA device".to_owned()),
    };
    let report = report(&nothing, None, &|_| None);
    assert_eq!(show(&report), "no RDMA: the kernel knows no RDMA device");
}
