//! What a server can have done with a monitor, in order (docs/shim.md § vmm).

use super::Target;
use super::devices::SaveDevices;
use super::mapped_ram::PunchMappedRam;
use super::qmp::{Command, Event, Failure, Qmp};
use super::status::AwaitStatus;
use super::stream::SaveMemory;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub const STEPS_MAX: usize = 128;
/// Those of one operation together.
const RESULT_BYTES_MAX: usize = 2 << 20;
/// Of all steps that are done whatever has happened, together, when the operation's own time is over.
const ALWAYS_TIMEOUT: Duration = Duration::from_secs(5);
const SETS_MAX: usize = 4096;

#[derive(Debug, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Step {
    /// Done even after a step has failed.
    always: bool,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Execute(Command),
    AddFd(AddFd),
    Await(Await),
    SaveMemory(SaveMemory),
    AwaitStatus(AwaitStatus),
    SaveDevices(SaveDevices),
    PunchMappedRam(PunchMappedRam),
}

impl Action {
    /// What the monitor is told to do, in the server's words.
    fn commands(&self) -> &[Command] {
        match self {
            Action::Execute(command) => std::slice::from_ref(command),
            Action::SaveMemory(save) => &save.meanwhile,
            _ => &[],
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    always: bool,
    execute: Option<String>,
    arguments: Option<Value>,
    add_fd: Option<AddFd>,
    r#await: Option<Await>,
    save_memory: Option<SaveMemory>,
    await_status: Option<AwaitStatus>,
    save_devices: Option<SaveDevices>,
    punch_mapped_ram: Option<PunchMappedRam>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddFd {
    /// The monitor's number for files that belong together; its own is what `${fd:SET}` stands for.
    set: u32,
    path: PathBuf,
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Access {
    Read,
    Write,
    ReadWrite,
    /// Made new, to read and write.
    Create,
    /// Made new, to write: the monitor takes a file only for exactly what it is open for.
    CreateWrite,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Await {
    event: String,
    /// Whose value is compared; absent = the event itself is what is waited for.
    field: Option<String>,
    #[serde(default)]
    values: Vec<Value>,
    #[serde(default)]
    failures: Vec<Value>,
}

impl TryFrom<Fields> for Step {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields { always, execute, arguments, add_fd, r#await, save_memory, await_status, save_devices, punch_mapped_ram } = fields;
        if execute.is_none() && arguments.is_some() {
            return Err("a step's arguments are those of its execute".into());
        }
        let mut actions = [
            execute.map(|execute| Action::Execute(Command { execute, arguments })),
            add_fd.map(Action::AddFd),
            r#await.map(Action::Await),
            save_memory.map(Action::SaveMemory),
            await_status.map(Action::AwaitStatus),
            save_devices.map(Action::SaveDevices),
            punch_mapped_ram.map(Action::PunchMappedRam),
        ]
        .into_iter()
        .flatten();
        match (actions.next(), actions.next()) {
            (Some(action), None) => Ok(Self { always, action }),
            _ => Err("a step is one of execute, add_fd, await, save_memory, await_status, save_devices, punch_mapped_ram".into()),
        }
    }
}

/// The numbers that the monitor gave to files, for as long as it lives.
#[derive(Default)]
pub struct Descriptors(BTreeMap<u32, u64>);

impl Descriptors {
    /// Refuses a step that uses a file which no step before it hands over: before the first is done.
    pub fn check(&self, steps: &[Step]) -> Result<(), (usize, String)> {
        let mut known: std::collections::BTreeSet<u32> = self.0.keys().copied().collect();
        for (index, step) in steps.iter().enumerate() {
            if let Action::AddFd(add) = &step.action {
                known.insert(add.set);
            }
            for arguments in step.action.commands().iter().filter_map(|command| command.arguments.as_ref()) {
                let mut missing = None;
                each_reference(arguments, &mut |set| match set {
                    Ok(set) if known.contains(&set) => {}
                    Ok(set) => missing = Some(format!("no step before it adds set {set}")),
                    Err(text) => missing = Some(format!("{text:?} is no number of a set")),
                });
                if let Some(missing) = missing {
                    return Err((index, missing));
                }
            }
        }
        if known.len() > SETS_MAX { Err((0, format!("at most {SETS_MAX} sets of files"))) } else { Ok(()) }
    }
}

const REFERENCE: (&str, &str) = ("${fd:", "}");

fn each_reference<'a>(value: &'a Value, visit: &mut impl FnMut(Result<u32, &'a str>)) {
    match value {
        Value::String(text) => {
            let mut rest = text.as_str();
            while let Some((_, after)) = rest.split_once(REFERENCE.0) {
                let Some((number, after)) = after.split_once(REFERENCE.1) else { return visit(Err(rest)) };
                visit(number.parse().map_err(|_| number));
                rest = after;
            }
        }
        Value::Array(values) => values.iter().for_each(|value| each_reference(value, visit)),
        Value::Object(fields) => fields.values().for_each(|value| each_reference(value, visit)),
        _ => {}
    }
}

fn fill_in(value: &mut Value, descriptors: &Descriptors) {
    match value {
        Value::String(text) if text.contains(REFERENCE.0) => {
            let mut filled = String::new();
            let mut rest = text.as_str();
            while let Some((before, after)) = rest.split_once(REFERENCE.0) {
                let (number, after) = after.split_once(REFERENCE.1).expect("checked before the first step");
                let set: u32 = number.parse().expect("checked before the first step");
                filled.push_str(before);
                // A step that is done in any case may come after the one that should have added it: then it names a file that is not there.
                filled.push_str(&descriptors.0.get(&set).map_or_else(|| "none".into(), u64::to_string));
                rest = after;
            }
            filled.push_str(rest);
            *text = filled;
        }
        Value::Array(values) => values.iter_mut().for_each(|value| fill_in(value, descriptors)),
        Value::Object(fields) => fields.values_mut().for_each(|value| fill_in(value, descriptors)),
        _ => {}
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Done {
        ok: bool,
        /// One for each step.
        results: Vec<Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        stopped_us: Option<u64>,
    },
    Failed {
        ok: bool,
        error: String,
        /// The first that failed.
        step: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        class: Option<String>,
        /// One for each step; null for those that failed or were left out.
        results: Vec<Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        stopped_us: Option<u64>,
    },
}

/// Does them in order up to the first that fails, and then those that are to be done always.
pub fn run(qmp: &mut Qmp, descriptors: &mut Descriptors, steps: Vec<Step>, target: Option<&Target>, deadline: Instant) -> Outcome {
    qmp.forget_events();
    let mut results = Vec::with_capacity(steps.len());
    let mut failure: Option<(usize, Failure)> = None;
    let mut deadline = deadline;
    let mut pause = Pause::default();
    let mut bytes = 0;
    for (index, Step { always, action }) in steps.into_iter().enumerate() {
        if failure.is_some() && !always {
            results.push(Value::Null);
            continue;
        }
        let command = if let Action::Execute(command) = &action { Some(command.execute.clone()) } else { None };
        let result = act(qmp, descriptors, action, target, deadline).and_then(|result| {
            bytes += if result.is_object() || result.is_array() { result.to_string().len() } else { 0 };
            if bytes > RESULT_BYTES_MAX { Err(Failure::new("the results are longer than 2 MiB")) } else { Ok(result) }
        });
        match result {
            Ok(result) => {
                pause.note(command.as_deref());
                results.push(result);
            }
            Err(error) => {
                results.push(Value::Null);
                if failure.is_none() {
                    failure = Some((index, error));
                    deadline = deadline.max(Instant::now() + ALWAYS_TIMEOUT);
                }
            }
        }
    }
    let stopped_us = pause.micros;
    match failure {
        None => Outcome::Done { ok: true, results, stopped_us },
        Some((step, Failure { error, class })) => Outcome::Failed { ok: false, error, step, class, results, stopped_us },
    }
}

/// From the return of `stop` to that of `cont`.
#[derive(Default)]
struct Pause {
    since: Option<Instant>,
    micros: Option<u64>,
}

impl Pause {
    fn note(&mut self, command: Option<&str>) {
        match command {
            Some("stop") => self.since = Some(Instant::now()),
            Some("cont") => {
                if let Some(since) = self.since.take() {
                    self.micros = u64::try_from(since.elapsed().as_micros()).ok();
                }
            }
            _ => {}
        }
    }
}

fn act(qmp: &mut Qmp, descriptors: &mut Descriptors, action: Action, target: Option<&Target>, deadline: Instant) -> Result<Value, Failure> {
    match action {
        Action::Execute(command) => execute(qmp, descriptors, &command, deadline),
        Action::AddFd(add) => add_fd(qmp, descriptors, &add, deadline),
        Action::Await(wanted) => wait_for(qmp, &wanted, deadline),
        Action::SaveMemory(save) => {
            let target = target.ok_or_else(|| Failure::new("save_memory: there is no machine yet; send watch first"))?;
            let saved = save.run(target, |command| execute(qmp, descriptors, command, deadline).map(drop))?;
            Ok(json!(saved))
        }
        Action::AwaitStatus(wanted) => wanted.run(qmp, deadline),
        Action::SaveDevices(save) => save.run().map(|saved| json!(saved)).map_err(|error| Failure::new(format!("save_devices: {error}"))),
        Action::PunchMappedRam(punch) => {
            punch.run().map(|punched| json!(punched)).map_err(|error| Failure::new(format!("punch_mapped_ram: {error}")))
        }
    }
}

fn execute(qmp: &mut Qmp, descriptors: &Descriptors, command: &Command, deadline: Instant) -> Result<Value, Failure> {
    let Command { execute, mut arguments } = command.clone();
    if let Some(arguments) = &mut arguments {
        fill_in(arguments, descriptors);
    }
    let result = qmp.execute(&execute, arguments, None, deadline);
    result.map_err(|failure| Failure { error: format!("{execute}: {}", failure.error), ..failure })
}

fn add_fd(qmp: &mut Qmp, descriptors: &mut Descriptors, add: &AddFd, deadline: Instant) -> Result<Value, Failure> {
    let file = add.open().map_err(|error| Failure::new(format!("open {}: {error}", add.path.display())))?;
    let result = qmp.execute("add-fd", Some(json!({"fdset-id": add.set})), Some(file.as_fd()), deadline)?;
    let number = result["fd"].as_u64().ok_or_else(|| Failure::new("add-fd: the monitor gave no number"))?;
    descriptors.0.insert(add.set, number);
    Ok(result)
}

impl AddFd {
    fn open(&self) -> std::io::Result<File> {
        let create = matches!(self.access, Access::Create | Access::CreateWrite);
        let mut options = OpenOptions::new();
        options.read(!matches!(self.access, Access::Write | Access::CreateWrite)).write(self.access != Access::Read);
        options.create_new(create).mode(0o600).open(&self.path)
    }
}

fn wait_for(qmp: &mut Qmp, wanted: &Await, deadline: Instant) -> Result<Value, Failure> {
    let judge = |event: &Event| {
        if event.name != wanted.event {
            return None;
        }
        let Some(field) = &wanted.field else { return Some(Ok(event.data.clone())) };
        let value = &event.data[field];
        if wanted.failures.contains(value) {
            return Some(Err(Failure::new(format!("the event {} says {field} {value}", wanted.event))));
        }
        wanted.values.contains(value).then(|| Ok(event.data.clone()))
    };
    qmp.wait_for_event(&format!("wait for {}", wanted.event), judge, deadline)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(value: Value) -> Result<Vec<Step>, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_step_is_one_thing_and_knows_its_fields() {
        assert_eq!(steps(json!([{"execute": "stop"}, {"await": {"event": "STOP"}, "always": true}])).unwrap().len(), 2);
        for wrong in [
            json!({}),
            json!({"always": true}),
            json!({"arguments": {}}),
            json!({"execute": "stop", "await": {"event": "STOP"}}),
            json!({"await": {"event": "STOP"}, "arguments": {}}),
            json!({"execute": "stop", "argument": {}}),
            json!({"add_fd": {"set": -1, "path": "/a", "access": "read"}}),
            json!({"add_fd": {"set": 1, "path": "/a", "access": "append"}}),
            json!({"save_memory": {"base": "/a", "out": "/b"}}),
        ] {
            assert!(steps(json!([wrong])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_no_step_before_adds_is_refused_before_the_first_step() {
        let use_of = |text: &str| json!({"execute": "x", "arguments": {"a": [{"b": text}]}});
        let add = json!({"add_fd": {"set": 7, "path": "/a", "access": "read"}});
        let check = |list: Value| Descriptors::default().check(&steps(list).unwrap()).map_err(|(step, _)| step);
        assert_eq!(check(json!([add, use_of("/proc/self/fd/${fd:7}")])), Ok(()));
        assert_eq!(check(json!([use_of("${fd:7}"), add])), Err(0));
        assert_eq!(check(json!([add, use_of("${fd:7}${fd:8}")])), Err(1));
        assert_eq!(check(json!([add, use_of("${fd:x}")])), Err(1));
        assert_eq!(check(json!([add, use_of("${fd:7")])), Err(1));
        let meanwhile = |name: &str| json!({"save_memory": {"base": "b", "device_state": "d", "out": "o", "meanwhile": [use_of(name)]}});
        assert_eq!(check(json!([add, meanwhile("${fd:7}")])), Ok(()));
        assert_eq!(check(json!([add, meanwhile("${fd:8}")])), Err(1));
        assert_eq!(Descriptors(BTreeMap::from([(7, 20)])).check(&steps(json!([use_of("${fd:7}")])).unwrap()), Ok(()));
    }

    #[test]
    fn numbers_stand_where_files_were_named() {
        let mut value = json!({"a": ["${fd:7}", "x${fd:7}y${fd:9}", 1], "b": {"c": "$fd"}});
        fill_in(&mut value, &Descriptors(BTreeMap::from([(7, 20), (9, 31)])));
        assert_eq!(value, json!({"a": ["20", "x20y31", 1], "b": {"c": "$fd"}}));
    }
}
