//! Which kernels there are: one by default for each language, made by its first use, and those that were created by name.
//!
//! All of them live in this process and its children, so a fork's child and a resumed sandbox have them as they were.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::call::{Call, Gone, Status, decode};
use super::files::{self, Place, step};
use super::identity;
use super::kernel::{self, Handle, LANGUAGES, Language, language};
use crate::proto::guest::v1 as pb;

/// Beside the default ones. `limits.contextsPerSandboxMax` of the host is the same.
const CONTEXTS_MAX: usize = 16;
const ID_BYTES_MAX: usize = 64;

struct Context {
    language: &'static Language,
    /// Where its kernel starts; None = as default ones.
    cwd: Option<Place>,
    kernel: Handle,
    /// Numbers ascend in the order of creation.
    number: u64,
    is_default: bool,
}

#[derive(Default)]
struct Contexts {
    by_id: BTreeMap<String, Context>,
    created: u64,
}

fn contexts() -> MutexGuard<'static, Contexts> {
    static CONTEXTS: Mutex<Contexts> = Mutex::new(Contexts { by_id: BTreeMap::new(), created: 0 });
    let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    // Only tests, which have many runtimes, ever see a task end by itself.
    contexts.by_id.retain(|_, context| !context.kernel.is_closed());
    contexts
}

// ---------------------------------------------------------------- handlers

pub async fn create_context(first: Bytes, call: Call) -> Result<(), Status> {
    let request: pb::CreateContextRequest = decode(first)?;
    let Some(language) = LANGUAGES.iter().find(|language| language.name == request.language) else {
        return Err(Status::invalid(kernel::no_such_language(&request.language)));
    };
    if request.id.is_empty() || request.id.len() > ID_BYTES_MAX || is_language(&request.id) {
        return Err(Status::invalid(format!("{:?} cannot be the id of a context", request.id)));
    }
    let cwd = if request.cwd.is_empty() { None } else { Some(directory(&request.cwd).await?) };
    let context = contexts().add(&request.id, language, cwd, false)?;
    let started = tokio::select! {
        started = context.kernel.warm() => started.map_err(|problem| Status::new("failed_precondition", problem)),
        () = call.cancelled.cancelled() => Err(Gone.into()),
    };
    if let Err(error) = started {
        // Nobody was told its id, or ever will be.
        remove(&request.id).await;
        return Err(error);
    }
    Ok(call.send(&context.describe(&request.id)).await?)
}

pub async fn list_contexts(first: Bytes, call: Call) -> Result<(), Status> {
    let _: pb::ListContextsRequest = decode(first)?;
    let reply = {
        let contexts = contexts();
        let mut listed: Vec<_> = contexts.by_id.iter().filter(|(_, context)| context.is_there()).collect();
        listed.sort_by_key(|(_, context)| context.number);
        pb::ListContextsReply { contexts: listed.into_iter().map(|(id, context)| context.describe(id)).collect() }
    };
    Ok(call.send(&reply).await?)
}

pub async fn restart_context(first: Bytes, call: Call) -> Result<(), Status> {
    let request: pb::RestartContextRequest = decode(first)?;
    let context = contexts().find(&request.id)?;
    context.kernel.restart().await.map_err(|problem| Status::new("failed_precondition", problem))?;
    Ok(call.send(&context.describe(&request.id)).await?)
}

pub async fn remove_context(first: Bytes, call: Call) -> Result<(), Status> {
    let request: pb::RemoveContextRequest = decode(first)?;
    contexts().find(&request.id)?;
    remove(&request.id).await;
    Ok(call.send(&pb::Empty {}).await?)
}

/// Returns when nothing of its kernel is left.
async fn remove(id: &str) {
    let removed = contexts().by_id.remove(id);
    if let Some(context) = removed {
        context.kernel.end().await;
    }
}

async fn directory(path: &str) -> Result<Place, Status> {
    let place = Place::new(path)?;
    step(move || match place.check(fs::metadata(&place.real))? {
        metadata if metadata.is_dir() => Ok(place),
        _ => Err(files::status(&place.shown, &std::io::Error::from_raw_os_error(libc::ENOTDIR))),
    })
    .await
}

// ---------------------------------------------------------------- what RunCode asks

/// The kernel of a context, or of a language (empty = Python) when no context is named. `None`: there is no such language.
pub(super) fn kernel_for(context: &str, language_name: &str) -> Result<Option<Handle>, Status> {
    if context.is_empty() || is_language(context) {
        let named = if language_name.is_empty() { context } else { language_name };
        if !context.is_empty() && named != context {
            return Err(other_language(context, context, named));
        }
        let Some(language) = language(named) else { return Ok(None) };
        return Ok(Some(contexts().default_of(language)?));
    }
    let context_id = context;
    let context = contexts().find(context_id)?;
    match language_name {
        "" => Ok(Some(context.kernel)),
        name if name == context.language.name => Ok(Some(context.kernel)),
        name => Err(other_language(context_id, context.language.name, name)),
    }
}

/// For a template that is being built.
pub(super) fn default_kernel(language: &'static Language) -> Result<Handle, Status> {
    contexts().default_of(language)
}

fn other_language(id: &str, its: &str, asked: &str) -> Status {
    let asked: String = asked.chars().take(ID_BYTES_MAX).collect();
    Status::invalid(format!("context {id} runs {its}, not {asked:?}; leave the language out, or use a context of that language"))
}

/// Default contexts go by the name of their language.
fn is_language(id: &str) -> bool {
    LANGUAGES.iter().any(|language| language.name == id)
}

impl Contexts {
    fn find(&self, id: &str) -> Result<Context, Status> {
        match self.by_id.get(id) {
            Some(context) if context.is_there() => Ok(context.clone()),
            _ => {
                let shown: String = id.chars().take(ID_BYTES_MAX).collect();
                Err(Status::not_found(format!("there is no context {shown:?} in this sandbox; list those there are, or create one")))
            }
        }
    }

    fn default_of(&mut self, language: &'static Language) -> Result<Handle, Status> {
        match self.by_id.get(language.name) {
            Some(context) => Ok(context.kernel.clone()),
            None => Ok(self.add(language.name, language, None, true)?.kernel),
        }
    }

    fn add(&mut self, id: &str, language: &'static Language, cwd: Option<Place>, is_default: bool) -> Result<Context, Status> {
        if self.by_id.contains_key(id) {
            return Err(Status::new("already_exists", format!("there is a context {id:?} already")));
        }
        let created = self.by_id.values().filter(|context| !context.is_default).count();
        if !is_default && created >= CONTEXTS_MAX {
            return Err(Status::new(
                "resource_exhausted",
                format!("there are {created} contexts in this sandbox already, and {CONTEXTS_MAX} are allowed"),
            ));
        }
        self.created += 1;
        let kernel = kernel::spawn(language, cwd.clone());
        let context = Context { language, cwd, kernel, number: self.created, is_default };
        self.by_id.insert(id.to_owned(), context.clone());
        Ok(context)
    }
}

impl Clone for Context {
    fn clone(&self) -> Self {
        Self { cwd: self.cwd.clone(), kernel: self.kernel.clone(), ..*self }
    }
}

impl Context {
    /// A default one is only there while its kernel runs; what was created is there until it is removed.
    fn is_there(&self) -> bool {
        !self.is_default || self.kernel.is_running()
    }

    fn describe(&self, id: &str) -> pb::Context {
        let cwd = self.cwd.as_ref().map_or_else(identity::default_directory, |place| place.shown.clone());
        pb::Context { id: id.to_owned(), language: self.language.name.to_owned(), cwd, is_default: self.is_default }
    }
}
