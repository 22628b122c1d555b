//! The kernel's modules that the initramfs brings.

use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Loads those that `dir/order` names, one a line, each after what it needs, and gives the memory of their files back. A folder that is not there is a kernel with everything built in.
pub fn load_all(dir: &Path) -> Result<(), String> {
    let order = match fs::read_to_string(dir.join("order")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("read the list of modules: {error}")),
    };
    for name in order.lines().filter(|name| !name.is_empty()) {
        let file = File::open(dir.join(name)).map_err(|error| format!("open module {name}: {error}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(format!("load module {name}: {error}")),
        }
    }
    fs::remove_dir_all(dir).map_err(|error| format!("remove the modules' files: {error}"))
}
