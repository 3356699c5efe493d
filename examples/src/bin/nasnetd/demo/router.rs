//! The simulated router: seeded from an export, or taken up again from the data directory.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use nasnet_reconcile::device::MenuPath;
use nasnet_reconcile::routeros::export::{self, Seed};
use nasnet_reconcile::routeros::rest::{Password, RestDevice, RestOptions};
use nasnet_reconcile::simulator::{Admin, Refusal, Sim, SimProfile, SimServer};
use serde::{Deserialize, Serialize};

use super::{Args, BadInput};

const BUNDLED: &str = include_str!("../../../../data/home-office.rsc");
const USER: &str = "nasnet";
const PASSWORD: &str = "demo-only";
/// A group of our own: an export may take rights away from the groups every router has, and those of version 6 do not
/// know the REST API at all.
const GROUP: &str = "nasnet";
const POLICIES: &str = "read,write,policy,sensitive,rest-api";

/// What is remembered beside the simulator's rows, so that a second run knows what it goes on from.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    export: String,
    digest: String,
    menus: Vec<MenuPath>,
    errors: Vec<String>,
    lines: u64,
}

/// The router as the demo sees it: a device over HTTP, and the simulator behind it for the parts of the story that
/// other people play.
pub(crate) struct Router {
    pub(crate) server: SimServer,
    pub(crate) device: RestDevice,
    /// Menus that the export speaks of; a real adapter would know them from its table alone.
    pub(crate) menus: Vec<MenuPath>,
    pub(crate) export_errors: Vec<String>,
    pub(crate) export_lines: u64,
    /// Rows loaded by this run; `None` when the rows were taken up from an earlier run.
    pub(crate) seeded: Option<Seeded>,
    pub(crate) model: String,
    origin: Origin,
    home: PathBuf,
}

/// What seeding did.
pub(crate) struct Seeded {
    pub(crate) rows_in_export: usize,
    pub(crate) rows_loaded: usize,
    pub(crate) unapplied: usize,
    /// Values and rows that a router would refuse, kept as the export has them.
    pub(crate) unusual: usize,
}

impl Router {
    /// Starts the simulator. Reads the data directory, writes nothing.
    pub(crate) async fn start(args: &Args) -> Result<Self, BadInput> {
        let home = args.data.join("simulator");
        let rows = home.join("rows.json");
        let kept = Sim::load(&rows).map_err(|error| BadInput(error.to_string()))?;
        let given = args.export.as_deref().map(read_export).transpose()?;
        let (sim, origin, seeded) = match kept {
            Some(sim) => {
                let origin = read_origin(&home)?;
                if let (Some((path, text)), true) = (&given, args.export.is_some())
                    && digest(text) != origin.digest
                {
                    return Err(BadInput(format!(
                        "{}: its router was seeded from another export ({}) than {}; give another --data",
                        args.data.display(),
                        origin.export,
                        path.display()
                    )));
                }
                (sim, origin, None)
            }
            None => {
                let (name, text) = match &given {
                    Some((path, text)) => (path.display().to_string(), text.as_slice()),
                    None => ("the bundled one".to_owned(), BUNDLED.as_bytes()),
                };
                seed(name, text)?
            }
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
        let model = sim.profile().board.clone();
        let server = SimServer::start(sim, address).await.map_err(|error| BadInput(error.to_string()))?;
        let listening = server.address();
        let options = RestOptions::plain(listening.ip().to_string(), listening.port(), USER, Password::new(PASSWORD));
        Ok(Self {
            server,
            device: RestDevice::new(options),
            menus: origin.menus.clone(),
            export_errors: origin.errors.clone(),
            export_lines: origin.lines,
            seeded,
            model,
            origin,
            home,
        })
    }

    /// Saves the rows, so that the next run finds the router as this one left it.
    pub(crate) fn save(&self) -> Result<(), String> {
        std::fs::create_dir_all(&self.home).map_err(|error| format!("{}: {error}", self.home.display()))?;
        let path = self.home.join("origin.json");
        let text = serde_json::to_vec(&self.origin).map_err(|error| error.to_string())?;
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        self.server.sim().with(|sim| sim.save(&self.home.join("rows.json"))).map_err(|error| error.to_string())
    }
}

fn read_export(path: &Path) -> Result<(PathBuf, Vec<u8>), BadInput> {
    let text = std::fs::read(path).map_err(|error| BadInput(format!("{}: {error}", path.display())))?;
    Ok((path.to_owned(), text))
}

fn read_origin(home: &Path) -> Result<Origin, BadInput> {
    let path = home.join("origin.json");
    let text = std::fs::read(&path).map_err(|error| BadInput(format!("{}: {error}", path.display())))?;
    serde_json::from_slice(&text).map_err(|error| BadInput(format!("{}: {error}", path.display())))
}

fn seed(name: String, text: &[u8]) -> Result<(Sim, Origin, Option<Seeded>), BadInput> {
    let parsed = export::parse(text);
    let seed = export::apply(&parsed);
    if seed.row_count() == 0 {
        return Err(BadInput(format!("{name}: no configuration found; is it a RouterOS export?")));
    }
    let errors = parsed.errors.iter().map(ToString::to_string).collect();
    let mut sim = Sim::new(profile(&seed));
    let report = sim.seed_from_export(&seed);
    let groups: MenuPath = "/user/group".parse().map_err(|error| BadInput(format!("{error}")))?;
    let rows_loaded = sim.edit(|admin| Ok(count_loaded(admin, &seed))).map_err(|error| BadInput(error.to_string()))?;
    sim.edit(|admin| give_access(admin, &groups)).map_err(|error| BadInput(error.to_string()))?;
    let seeded = Seeded {
        rows_in_export: seed.row_count(),
        rows_loaded,
        unapplied: seed.unapplied.len(),
        unusual: report.problems.len(),
    };
    let origin = Origin {
        export: name,
        digest: digest(text),
        menus: seed.ordered().map(|(menu, _)| menu.clone()).collect(),
        errors,
        lines: text.split(|byte| *byte == b'\n').count() as u64,
    };
    Ok((sim, origin, Some(seeded)))
}

/// Counts the rows of an export that the router has, by what it lists and not by what loading claims.
fn count_loaded(admin: &Admin<'_>, seed: &Seed) -> usize {
    seed.menus.iter().map(|(menu, rows)| admin.rows(menu).len().min(rows.len())).sum()
}

/// Makes the login that this program uses, whatever users and groups the export has.
fn give_access(admin: &mut Admin<'_>, groups: &MenuPath) -> Result<(), Refusal> {
    let group = [("name", GROUP), ("policy", POLICIES)];
    match admin.find(groups, "name", GROUP) {
        Some(id) => admin.set(groups, &id, &group)?,
        None => drop(admin.add(groups, &group)?),
    }
    admin.set_login(USER, PASSWORD, GROUP)
}

/// The header of an export says which router printed it.
fn profile(seed: &Seed) -> SimProfile {
    let mut profile = SimProfile::hap_7_16();
    let header = &seed.header;
    for (known, field) in [
        (&header.version, &mut profile.version),
        (&header.model, &mut profile.board),
        (&header.serial, &mut profile.serial),
    ] {
        if let Some(known) = known.as_deref().filter(|known| !known.is_empty()) {
            known.clone_into(field);
        }
    }
    // The ports an export does not print are created when something refers to them.
    profile.with_os_random_seed()
}

/// Tells one export from another.
fn digest(text: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
