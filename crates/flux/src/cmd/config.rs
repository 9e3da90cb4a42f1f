//! `flux config`: what is in effect, and whether it makes sense.

use crate::args::{ConfigView, Run};
use crate::settings::{read_layers, resolve, show};
use crate::{Failure, out};

/// The shipped file.
const DEFAULTS: &str = include_str!("../../../../etc/flux.toml");

/// Prints settings, or only their mistakes.
///
/// # Errors
/// Every mistake.
pub(crate) fn run(run: Run, view: ConfigView) -> Result<(), Failure> {
    if view == ConfigView::Defaults {
        out::text(DEFAULTS);
        return Ok(());
    }
    let resolved = resolve(&read_layers(run.config, run.flags)?, run.parts)?;
    if view == ConfigView::Effective {
        out::text(&show(&resolved));
    }
    Ok(())
}
