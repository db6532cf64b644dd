//! Real devices, through libibverbs: the only part of this crate that calls verbs.
//!
//! A device's completions are heard by one thread that sleeps until there is one. Queue pairs and
//! completion queues are the basic ones, which every provider has; a batch is posted by one call, and
//! its last work request alone is signalled.

mod events;
mod pair;

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use flexkv_ports::MemorySlice;
use sideway::ibverbs::AccessFlags;
use sideway::ibverbs::device::{DeviceInfo as _, DeviceList};
use sideway::ibverbs::device_context::DeviceContext;
use sideway::ibverbs::memory_region::MemoryRegion;
use sideway::ibverbs::protection_domain::ProtectionDomain;

use self::events::Events;
use self::pair::VerbsPair;
use crate::devices::{Survey, bound_numa_node};
use crate::nic::{Completions, Limits, Nic, NicError, Pair, PortAddress, Region, Rights};

/// The most reads under way at a time that are asked for: more gain nothing on links of a host.
const READS: i32 = 64;
/// Packet sizes as verbs number them.
const PACKET_SIZES: std::ops::RangeInclusive<u32> = 1..=5;

/// A port of a real device.
pub struct VerbsNic {
    name: String,
    port: Port,
    address: PortAddress,
    limits: Limits,
    domain: Arc<ProtectionDomain>,
    events: Arc<Events>,
}

/// What a queue pair must know of its port.
#[derive(Clone, Copy, Debug)]
struct Port {
    number: u8,
    gid_index: u8,
}

impl VerbsNic {
    /// Opens the best port of this machine: of the device called `named`, if a name is given; else
    /// with the address `at`; else of a device at the NUMA node that this process is bound to; else
    /// the first one that is active.
    pub fn open(named: Option<&str>, at: Option<IpAddr>) -> Result<Self, NicError> {
        let survey = Survey::take();
        let choice = survey
            .choose(named, at, bound_numa_node())
            .map_err(|why| NicError::new("find an RDMA device", why))?;
        let context = open(&choice.device.name)?;
        let refused = |step| move |error: &dyn std::error::Error| NicError::new(step, root(error));
        let number = choice.port.number;
        let port = context
            .query_port(number)
            .map_err(|error| refused("ask for the port")(&error))?;
        let device = context
            .query_device()
            .map_err(|error| refused("ask for the device")(&error))?;
        let mtu = port.attr.active_mtu;
        if !PACKET_SIZES.contains(&mtu) {
            return Err(NicError::new(
                "use the port",
                format!("its packet size is {mtu}"),
            ));
        }
        let reads = device.max_qp_rd_atom().min(device.max_qp_init_rd_atom());
        let limits = Limits {
            work_requests: u32::try_from(device.max_qp_wr().min(device.max_cqe())).unwrap_or(1),
            message_bytes: u64::from(port.attr.max_msg_sz),
            reads: reads.clamp(1, READS) as u8,
        };
        let domain = context
            .alloc_pd()
            .map_err(|error| refused("allocate a protection domain")(&error))?;
        Ok(Self {
            events: Events::start(&context)?,
            domain,
            address: PortAddress {
                link: choice.link,
                lid: choice.port.lid,
                gid: choice.gid.bytes,
                mtu: mtu as u8,
            },
            limits,
            port: Port {
                number,
                gid_index: choice.gid.index,
            },
            name: choice.device.name.clone(),
        })
    }
}

/// Whether libibverbs can be used, and knows the device; words why not.
pub fn usable(device: &str) -> Result<(), NicError> {
    open(device).map(|_| ())
}

fn open(name: &str) -> Result<Arc<DeviceContext>, NicError> {
    let step = "list devices with libibverbs";
    let list = DeviceList::new().map_err(|error| {
        let hint = "is the package libibverbs1 installed?";
        NicError::new(step, format!("{} ({hint})", root(&error)))
    })?;
    let found = list.iter().find(|device| device.name() == name);
    let hint = "libibverbs does not know it: is the package ibverbs-providers installed?";
    let device = found.ok_or_else(|| NicError::new("open the device", hint))?;
    let opened = device.open();
    opened.map_err(|error| NicError::new("open the device", root(&error)))
}

/// What the system said, at the end of an error's sources.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

struct VerbsRegion {
    // Before the memory, which is mapped for as long as it is registered.
    region: Arc<MemoryRegion>,
    _memory: MemorySlice,
}

impl Region for VerbsRegion {
    fn local_key(&self) -> u32 {
        self.region.lkey()
    }

    fn remote_key(&self) -> u32 {
        self.region.rkey()
    }
}

impl Nic for VerbsNic {
    fn name(&self) -> &str {
        &self.name
    }

    fn address(&self) -> PortAddress {
        self.address
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn register(&self, part: MemorySlice, peers_may: Rights) -> Result<Box<dyn Region>, NicError> {
        let access = match peers_may {
            Rights::Nothing => AccessFlags::LocalWrite,
            Rights::Read => AccessFlags::LocalWrite | AccessFlags::RemoteRead,
        };
        let (base, bytes) = (part.as_ptr() as usize, part.len());
        // SAFETY: the region keeps the slice, and so its memory mapped, until it is deregistered; the
        // memory is shared with other processes anyway, and read through raw copies alone.
        let region = unsafe { self.domain.reg_mr(base, bytes, access) };
        let region = region.map_err(|error| {
            let hint = "may the process lock that much memory? (ulimit -l)";
            NicError::new(
                "register memory",
                format!("{} ({bytes} bytes; {hint})", root(&error)),
            )
        })?;
        Ok(Box::new(VerbsRegion {
            region,
            _memory: part,
        }))
    }

    fn pair(&self, depth: u32, heard_by: Weak<dyn Completions>) -> Result<Box<dyn Pair>, NicError> {
        let pair = VerbsPair::create(&self.domain, &self.events, self.port, depth, heard_by)?;
        Ok(Box::new(pair))
    }
}

impl std::fmt::Debug for VerbsNic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "VerbsNic({}, {:?}, {:?})",
            self.name, self.address, self.limits
        )
    }
}

impl Drop for VerbsNic {
    fn drop(&mut self) {
        self.events.stop();
    }
}
