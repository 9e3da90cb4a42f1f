//! Documents whose commands are tests: what stands in blocks with a mark of their own, such as
//! `sh test`.
//!
//! What a line promises stands behind it after ` # `, or in a block marked `text` right after the
//! block of which it is the only line.

/// One command and its promise.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) command: String,
    pub(crate) promise: Option<String>,
}

/// The commands of a document in their order: those in blocks with this mark.
pub(crate) fn steps(text: &str, mark: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = None;
    // Steps of the block before, if nothing but empty lines has come since.
    let mut just_before = 0;
    let mut output = Vec::new();
    for line in text.lines() {
        match (inside, line.strip_prefix("```")) {
            (None, Some(info)) => {
                inside = Some(info.trim());
                if inside == Some(mark) {
                    just_before = steps.len();
                }
            }
            (Some(kind), Some(_)) => {
                if kind == "text" && just_before.checked_add(1) == Some(steps.len()) {
                    let step = &mut steps[just_before];
                    step.promise = Some(std::mem::take(&mut output).join("\n"));
                }
                output.clear();
                if kind != mark {
                    just_before = usize::MAX;
                }
                inside = None;
            }
            (Some(kind), None) if kind == mark && !line.trim().is_empty() => {
                let (command, promise) = match line.split_once(" # ") {
                    Some((command, promise)) => (command, Some(promise.trim().to_owned())),
                    None => (line, None),
                };
                steps.push(Step {
                    command: command.trim().to_owned(),
                    promise,
                });
            }
            (Some("text"), None) => output.push(line.to_owned()),
            (None, None) if !line.trim().is_empty() => just_before = usize::MAX,
            (Some(_) | None, None) => {}
        }
    }
    steps
}
