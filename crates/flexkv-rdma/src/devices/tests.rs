//! Machines made of files: what is chosen on them, and why something is not.

use tempfile::TempDir;

use super::*;

struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        Self(TempDir::new().expect("a folder"))
    }

    fn write(&self, file: &str, text: &str) {
        let file = self.0.path().join(file);
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(file, text).expect("written");
    }

    /// A device with one port that can be used.
    fn device(self, name: &str, numa: i32, gid: &str) -> Self {
        let port = format!("{DEVICES}/{name}/ports/1");
        self.write(
            &format!("{DEVICES}/{name}/device/numa_node"),
            &format!("{numa}\n"),
        );
        self.write(&format!("{port}/state"), "4: ACTIVE\n");
        self.write(&format!("{port}/link_layer"), "Ethernet\n");
        self.write(&format!("{port}/rate"), "100 Gb/sec (4X EDR)\n");
        self.write(&format!("{port}/lid"), "0x0\n");
        self.write(
            &format!("{port}/gids/0"),
            "fe80:0000:0000:0000:0000:0000:0000:0001\n",
        );
        self.write(&format!("{port}/gid_attrs/types/0"), "RoCE v2\n");
        self.write(
            &format!("{port}/gids/1"),
            "0000:0000:0000:0000:0000:ffff:0a09:0009\n",
        );
        self.write(&format!("{port}/gid_attrs/types/1"), "IB/RoCE v1\n");
        self.write(
            &format!("{port}/gids/2"),
            "0000:0000:0000:0000:0000:0000:0000:0000\n",
        );
        self.write(&format!("{port}/gids/3"), gid);
        self.write(&format!("{port}/gid_attrs/types/3"), "RoCE v2\n");
        self.write(
            &format!("{VERBS}/uverbs-{name}/ibdev"),
            &format!("{name}\n"),
        );
        self.write(&format!("{FILES}/uverbs-{name}"), "");
        self
    }

    fn survey(&self) -> Survey {
        Survey::below(self.0.path())
    }
}

const FIRST: &str = "0000:0000:0000:0000:0000:ffff:0a09:0001\n";
const SECOND: &str = "0000:0000:0000:0000:0000:ffff:0a09:0002\n";

fn two() -> Machine {
    let machine = Machine::new().device("mlx5_0", 0, FIRST);
    machine.device("mlx5_1", 1, SECOND)
}

#[test]
fn a_port_is_told_with_the_gid_of_its_ipv4_address() {
    let survey = two().survey();
    assert_eq!(survey.problem, None);
    let names: Vec<_> = survey.devices.iter().map(|device| &*device.name).collect();
    assert_eq!(names, ["mlx5_0", "mlx5_1"]);
    let device = &survey.devices[1];
    assert!(device.is_usable());
    assert_eq!(device.numa_node, Some(1));
    let port = &device.ports[0];
    assert_eq!((port.number, port.link), (1, Some(Link::Ethernet)));
    assert_eq!(port.rate, "100 Gb/sec (4X EDR)");
    let gid = port.gid.expect("a GID");
    assert_eq!(
        (gid.index, gid.address().to_string()),
        (3, "10.9.0.2".to_owned())
    );
}

#[test]
fn the_port_is_chosen_by_name_then_address_then_locality_then_order() {
    let survey = two().survey();
    let chosen = |named, at: Option<&str>, near| {
        let at = at.map(|at| at.parse().expect("an address"));
        let choice = survey.choose(named, at, near).expect("a port");
        choice.device.name.clone()
    };
    assert_eq!(chosen(None, None, None), "mlx5_0");
    assert_eq!(chosen(None, None, Some(1)), "mlx5_1");
    assert_eq!(chosen(None, None, Some(7)), "mlx5_0");
    assert_eq!(chosen(None, Some("10.9.0.2"), Some(0)), "mlx5_1");
    assert_eq!(chosen(Some("mlx5_0"), Some("10.9.0.2"), Some(1)), "mlx5_0");
}

#[test]
fn what_cannot_be_used_says_why() {
    let why = |machine: &Machine| machine.survey().choose(None, None, None).map(|_| ());
    let nothing = Machine::new();
    let text = "the kernel has no RDMA support, or its modules are not loaded \
                (there is no /sys/class/infiniband)";
    assert_eq!(why(&nothing), Err(text.to_owned()));
    fs::create_dir_all(nothing.0.path().join(DEVICES)).expect("made");
    assert_eq!(
        why(&nothing),
        Err("the kernel knows no RDMA device".to_owned())
    );

    let port = format!("{DEVICES}/rxe0/ports/1");
    for (file, content, text) in [
        ("state", "1: DOWN\n", "rxe0 port 1: is not active but DOWN"),
        (
            "link_layer",
            "Unspecified\n",
            "rxe0 port 1: has a link of the unknown kind Unspecified",
        ),
    ] {
        let machine = Machine::new().device("rxe0", -1, FIRST);
        machine.write(&format!("{port}/{file}"), content);
        assert_eq!(why(&machine), Err(text.to_owned()));
        assert!(!machine.survey().devices[0].is_usable());
    }
    let machine = Machine::new().device("rxe0", -1, FIRST);
    assert_eq!(machine.survey().devices[0].numa_node, None, "-1 is no node");
    for index in [0, 3] {
        machine.write(&format!("{port}/gid_attrs/types/{index}"), "IB/RoCE v1\n");
    }
    let text = "rxe0 port 1: has no GID of RoCE version 2: its network interface needs an address";
    assert_eq!(why(&machine), Err(text.to_owned()));

    let machine = Machine::new().device("rxe0", -1, FIRST);
    fs::remove_file(machine.0.path().join(FILES).join("uverbs-rxe0")).expect("removed");
    let text = "rxe0: /dev/infiniband/uverbs-rxe0 cannot be opened: No such file or directory (os error 2)";
    assert_eq!(why(&machine), Err(text.to_owned()));
    let named = two().survey().choose(Some("rxe7"), None, None).map(|_| ());
    assert_eq!(named, Err("there is no device called rxe7".to_owned()));
}
