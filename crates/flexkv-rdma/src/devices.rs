//! The RDMA devices of this machine, as the kernel tells of them in files, which of their ports can
//! be used, and why the others cannot. Needs no library, and opens no device.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use rustix::fs::{Access, access};

use crate::nic::Link;

/// Where the kernel tells of devices.
const DEVICES: &str = "sys/class/infiniband";
/// Where it tells which file opens a device.
const VERBS: &str = "sys/class/infiniband_verbs";
/// Where those files are.
const FILES: &str = "dev/infiniband";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The devices, by name.
    pub devices: Vec<DeviceReport>,
    /// Why there are none.
    pub problem: Option<String>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// Its name, such as `mlx5_0`.
    pub name: String,
    /// The NUMA node it is attached to, if it is attached to one.
    pub numa_node: Option<u32>,
    /// Its ports.
    pub ports: Vec<PortReport>,
    /// Why it cannot be used, whatever its ports are like.
    pub problem: Option<String>,
}

/// A port of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortReport {
    /// Its number, from 1 on.
    pub number: u8,
    /// The kind of link, if it is one that we know.
    pub link: Option<Link>,
    /// How fast, in the kernel's words.
    pub rate: String,
    /// Its local id; 0 on Ethernet.
    pub lid: u16,
    /// The GID that would be used.
    pub gid: Option<GidReport>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// A GID of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GidReport {
    /// Its place in the port's table.
    pub index: u8,
    /// Its bytes.
    pub bytes: [u8; 16],
}

impl GidReport {
    /// The IP address that it stands for.
    pub fn address(&self) -> IpAddr {
        Ipv6Addr::from(self.bytes).to_canonical()
    }
}

/// A port to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The device.
    pub device: &'a DeviceReport,
    /// Its port.
    pub port: &'a PortReport,
    /// The port's GID.
    pub gid: GidReport,
    /// The port's link.
    pub link: Link,
}

impl Survey {
    /// Looks at this machine.
    pub fn take() -> Self {
        Self::below(Path::new("/"))
    }

    /// Looks at the machine whose files are below `root`.
    pub fn below(root: &Path) -> Self {
        let dir = root.join(DEVICES);
        let Some(names) = entries(&dir) else {
            let problem =
                "the kernel has no RDMA support, or its modules are not loaded".to_owned();
            return Self {
                problem: Some(format!("{problem} (there is no /{DEVICES})")),
                ..Self::default()
            };
        };
        let device = |name: String| device(root, name);
        let devices: Vec<_> = names.into_iter().map(device).collect();
        let problem = devices.is_empty();
        Self {
            devices,
            problem: problem.then(|| "the kernel knows no RDMA device".to_owned()),
        }
    }

    /// The best port: of the device called `named`, if a name is given; else with the address `at`;
    /// else of a device at NUMA node `near`; else the first. Words why there is none.
    pub fn choose(
        &self,
        named: Option<&str>,
        at: Option<IpAddr>,
        near: Option<u32>,
    ) -> Result<Choice<'_>, String> {
        let wanted = |device: &&DeviceReport| named.is_none_or(|name| name == device.name);
        let devices = self.devices.iter().filter(wanted);
        let usable = devices.clone().flat_map(usable_ports);
        let rank = |choice: &Choice<'_>| {
            let elsewhere = at.is_some_and(|at| choice.gid.address() != at);
            let far = near.is_some() && choice.device.numa_node != near;
            (elsewhere, far)
        };
        if let Some(choice) = usable.min_by_key(rank) {
            return Ok(choice);
        }
        let mut why: Vec<String> = devices.flat_map(problems).collect();
        why.extend(self.problem.clone());
        if let (Some(name), true) = (named, why.is_empty()) {
            why.push(format!("there is no device called {name}"));
        }
        Err(why.join("; "))
    }
}

impl DeviceReport {
    /// Whether any port of it can be used.
    pub fn is_usable(&self) -> bool {
        usable_ports(self).next().is_some()
    }
}

fn usable_ports(device: &DeviceReport) -> impl Iterator<Item = Choice<'_>> {
    let fit = device.problem.is_none();
    let ports = device
        .ports
        .iter()
        .filter(move |port| fit && port.problem.is_none());
    ports.filter_map(move |port| {
        Some(Choice {
            device,
            port,
            gid: port.gid?,
            link: port.link?,
        })
    })
}

/// What is wrong with a device and its ports.
fn problems(device: &DeviceReport) -> Vec<String> {
    let name = &device.name;
    let own = device
        .problem
        .iter()
        .map(|problem| format!("{name}: {problem}"));
    let ports = device.ports.iter().filter_map(|port| {
        let problem = port.problem.as_ref()?;
        Some(format!("{name} port {}: {problem}", port.number))
    });
    own.chain(ports).collect()
}

/// The NUMA node that this process may take memory of, if it is one alone.
pub fn bound_numa_node() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Mems_allowed_list:"))?;
    line.trim().parse().ok()
}

fn device(root: &Path, name: String) -> DeviceReport {
    let dir = root.join(DEVICES).join(&name);
    let numa_node = text(&dir.join("device/numa_node")).and_then(|text| text.parse().ok());
    let numbers = entries(&dir.join("ports")).unwrap_or_default();
    let mut numbers: Vec<u8> = numbers
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    numbers.sort_unstable();
    let port = |number| port(&dir.join(format!("ports/{number}")), number);
    DeviceReport {
        numa_node,
        ports: numbers.into_iter().map(port).collect(),
        problem: unopenable(root, &name),
        name,
    }
}

/// Why the device cannot be opened.
fn unopenable(root: &Path, device: &str) -> Option<String> {
    let verbs = root.join(VERBS);
    let opens = |name: &String| text(&verbs.join(name).join("ibdev")).as_deref() == Some(device);
    let Some(name) = entries(&verbs).unwrap_or_default().into_iter().find(opens) else {
        return Some("no file opens it: is the module ib_uverbs loaded?".to_owned());
    };
    let file = root.join(FILES).join(&name);
    match access(&file, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => None,
        Err(error) => Some(format!("/{FILES}/{name} cannot be opened: {error}")),
    }
}

fn port(dir: &Path, number: u8) -> PortReport {
    let layer = text(&dir.join("link_layer")).unwrap_or_default();
    let link = match layer.as_str() {
        "InfiniBand" => Some(Link::InfiniBand),
        "Ethernet" => Some(Link::Ethernet),
        _ => None,
    };
    let state = text(&dir.join("state")).unwrap_or_default();
    let gid = link.and_then(|link| best_gid(dir, link));
    let problem = if !state.starts_with("4:") {
        let state = state.split(": ").last().unwrap_or_default();
        Some(format!("is not active but {state}"))
    } else if link.is_none() {
        Some(format!("has a link of the unknown kind {layer}"))
    } else if gid.is_none() {
        Some("has no GID of RoCE version 2: its network interface needs an address".to_owned())
    } else {
        None
    };
    let lid = text(&dir.join("lid")).unwrap_or_default();
    PortReport {
        number,
        link,
        rate: text(&dir.join("rate")).unwrap_or_default(),
        lid: u16::from_str_radix(lid.trim_start_matches("0x"), 16).unwrap_or(0),
        gid,
        problem,
    }
}

/// The first GID on InfiniBand. On Ethernet one of RoCE version 2: of an IPv4 address rather than of
/// an IPv6 one, and of that rather than of one that is valid on its link alone.
fn best_gid(port: &Path, link: Link) -> Option<GidReport> {
    let mut indexes: Vec<u8> = entries(&port.join("gids"))?
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    indexes.sort_unstable();
    let read = |index: u8| {
        let written = text(&port.join(format!("gids/{index}")))?;
        let bytes = written.parse::<Ipv6Addr>().ok()?.octets();
        let kind = text(&port.join(format!("gid_attrs/types/{index}"))).unwrap_or_default();
        let fits = link == Link::InfiniBand || kind == "RoCE v2";
        (fits && bytes != [0; 16]).then_some(GidReport { index, bytes })
    };
    let rank = |gid: &GidReport| match (link, gid.address()) {
        (Link::InfiniBand, _) | (_, IpAddr::V4(_)) => 0,
        (_, IpAddr::V6(address)) if !address.is_unicast_link_local() => 1,
        _ => 2,
    };
    indexes.into_iter().filter_map(read).min_by_key(rank)
}

/// The names in a folder, in order; none if it is not there.
fn entries(dir: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(dir).ok()?;
    let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort_unstable();
    Some(names)
}

/// The text of a file of the kernel, which fails for entries of a table that are not used.
fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests;
