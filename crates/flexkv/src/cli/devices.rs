//! `flexkv devices`: which RDMA devices can be used, and why the others cannot.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use flexkv_rdma::{DeviceReport, Link, PortReport, Survey, bound_numa_node};
use serde::Serialize;

/// List the RDMA devices of this host: which can be used, and why the others cannot.
///
/// A node uses one if its configuration has `network.rdma_port`: of the device named there, else with
/// the address that peers are told, else of the NUMA node that the process is bound to, else the
/// first that is active. docs/rdma.md explains how to build a flexkv that has RDMA.
///
///   flexkv devices
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct DevicesArgs {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// What is told of a port; or of a device, if it has none.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    device: String,
    port: Option<u8>,
    link: Option<&'static str>,
    rate: Option<String>,
    address: Option<String>,
    numa_node: Option<u32>,
    usable: bool,
    /// Why not.
    problem: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Report {
    /// Why this program cannot use any of them.
    problem: Option<String>,
    ports: Vec<Row>,
    /// The device that a node would use.
    chosen: Option<String>,
}

pub(super) fn run(args: &DevicesArgs, out: &mut dyn Write) -> Result<()> {
    let report = report(&Survey::take(), bound_numa_node(), &library);
    if args.json {
        return super::print_json(out, &report);
    }
    super::print(out, &show(&report))
}

/// Why the library of verbs cannot open a device.
#[cfg(feature = "rdma")]
fn library(device: &str) -> Option<String> {
    let problem = flexkv_rdma::usable(device).err()?;
    Some(problem.to_string())
}

/// Why the library of verbs cannot open a device: nobody asks it.
#[cfg(not(feature = "rdma"))]
fn library(_: &str) -> Option<String> {
    None
}

fn report(survey: &Survey, near: Option<u32>, library: &dyn Fn(&str) -> Option<String>) -> Report {
    let without = "this flexkv is built without RDMA (cargo's feature `rdma`)";
    let built = (!cfg!(feature = "rdma")).then(|| without.to_owned());
    let rows = |device: &DeviceReport| rows(device, library(&device.name));
    let ports: Vec<Row> = survey.devices.iter().flat_map(rows).collect();
    let chosen = survey.choose(None, None, near).ok();
    let chosen = chosen.map(|choice| choice.device.name.clone());
    let opens = |name: &String| ports.iter().any(|row| row.device == *name && row.usable);
    Report {
        chosen: chosen.filter(|name| built.is_none() && opens(name)),
        problem: survey.problem.clone().or(built),
        ports,
    }
}

fn rows(device: &DeviceReport, library: Option<String>) -> Vec<Row> {
    let of_all = device.problem.clone().or(library);
    let row = |port: Option<&PortReport>| {
        let own = port.map_or_else(
            || Some("has no port".to_owned()),
            |port| port.problem.clone(),
        );
        let problem = of_all.clone().or(own);
        Row {
            device: device.name.clone(),
            port: port.map(|port| port.number),
            link: port.and_then(|port| port.link).map(|link| match link {
                Link::InfiniBand => "InfiniBand",
                Link::Ethernet => "Ethernet",
            }),
            rate: port.map(|port| port.rate.clone()),
            address: port
                .and_then(|port| port.gid)
                .map(|gid| gid.address().to_string()),
            numa_node: device.numa_node,
            usable: problem.is_none(),
            problem,
        }
    };
    if device.ports.is_empty() {
        return vec![row(None)];
    }
    device.ports.iter().map(|port| row(Some(port))).collect()
}

fn show(report: &Report) -> String {
    let mut lines = Vec::new();
    if !report.ports.is_empty() {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "device", "port", "link", "rate", "address", "NUMA", "usable",
        ]);
        for row in &report.ports {
            let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            table.add_row([
                row.device.clone(),
                or_none(row.port.map(|port| port.to_string())),
                or_none(row.link.map(str::to_owned)),
                or_none(row.rate.clone()),
                or_none(row.address.clone()),
                or_none(row.numa_node.map(|node| node.to_string())),
                row.problem
                    .as_ref()
                    .map_or_else(|| "yes".to_owned(), |problem| format!("no: {problem}")),
            ]);
        }
        lines.push(table.to_string());
    }
    match (&report.problem, &report.chosen) {
        (Some(problem), _) => lines.push(format!("no RDMA: {problem}")),
        (None, Some(device)) => lines.push(format!("a node would use {device}")),
        (None, None) => lines.push("no RDMA: no device can be used".to_owned()),
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests;
