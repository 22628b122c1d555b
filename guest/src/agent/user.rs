//! Users of the sandbox, read from its own /etc/passwd and /etc/group: the binary is static and knows no NSS.

use std::path::Path;

use super::small_file;

/// More than any real file has; a hostile one is cut here.
const FILE_BYTES_MAX: u64 = 1 << 20;
const GROUPS_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    /// Supplementary groups, `gid` included.
    pub groups: Vec<u32>,
}

/// Finds a user as image configurations name one: `name`, `uid`, `name:group` or `uid:gid`. A number that no line has is taken as it is, with
/// group 0 in the absence of another, as other runtimes do. A group that is named leaves the user without further ones.
pub fn find(name_or_number: &str) -> Result<User, String> {
    let passwd = read(Path::new("/etc/passwd"));
    let group = read(Path::new("/etc/group"));
    find_in(name_or_number, &passwd, &group)
}

fn read(path: &Path) -> String {
    // A missing file is an image without users: root and numbers still work.
    let bytes = small_file::read(path, FILE_BYTES_MAX).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (wanted, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let wanted = if wanted.is_empty() { "root" } else { wanted };
    let number = number(wanted);
    let entries = || passwd.lines().filter_map(parse_passwd_line);
    let mut user = match entries().find(|user| user.name == wanted).or_else(|| entries().find(|user| Some(user.uid) == number)) {
        Some(user) => user,
        None => match (wanted, number) {
            ("root", _) | (_, Some(0)) => User { name: "root".into(), uid: 0, gid: 0, home: "/root".into(), groups: vec![] },
            (_, Some(uid)) => User { name: wanted.into(), uid, gid: 0, home: "/".into(), groups: vec![] },
            _ => return Err(format!("there is no user {wanted:?} in the sandbox's /etc/passwd")),
        },
    };
    if let Some(wanted) = wanted_group {
        let named = group_lines(group).find(|line| line.name == wanted).map(|line| line.gid);
        user.gid =
            named.or_else(|| self::number(wanted)).ok_or_else(|| format!("there is no group {wanted:?} in the sandbox's /etc/group"))?;
        user.groups = vec![user.gid];
        return Ok(user);
    }
    user.groups = vec![user.gid];
    for line in group_lines(group) {
        let is_member = line.members.split(',').any(|member| member.trim() == user.name);
        if is_member && !user.groups.contains(&line.gid) && user.groups.len() < GROUPS_MAX {
            user.groups.push(line.gid);
        }
    }
    Ok(user)
}

/// Not the one that means "as before" to the kernel: a program would stay root.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_lines(group: &str) -> impl Iterator<Item = GroupLine<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid, members) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(GroupLine { name, gid: number(gid)?, members })
    })
}

fn parse_passwd_line(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
    let home = if home.is_empty() { "/" } else { home };
    Some(User { name: (*name).into(), uid: number(uid)?, gid: number(gid)?, home: home.into(), groups: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1001:Ann:/home/ann:/bin/sh\nbob:x:12:13::\n";
    const GROUP: &str = "root:x:0:\nann:x:1001:\nsudo:x:27:ann,bob\nbad:x:zz:ann\nstaff:x:50:bob,ann\n";

    #[test]
    fn a_user_is_found_by_name_and_by_number_with_supplementary_groups() {
        let ann = User { name: "ann".into(), uid: 1000, gid: 1001, home: "/home/ann".into(), groups: vec![1001, 27, 50] };
        assert_eq!(find_in("ann", PASSWD, GROUP), Ok(ann.clone()));
        assert_eq!(find_in("1000", PASSWD, GROUP), Ok(ann));
    }

    #[test]
    fn empty_means_root_even_in_an_image_without_users() {
        assert_eq!(find_in("", "", "").map(|user| (user.uid, user.gid, user.home)), Ok((0, 0, "/root".into())));
    }

    #[test]
    fn a_number_without_a_line_is_used_as_it_is_and_an_unknown_name_is_refused() {
        assert_eq!(find_in("4242", PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups)), Ok((4242, 0, vec![0])));
        assert!(find_in("nobody-here", PASSWD, GROUP).is_err());
        assert!(find_in("-1", PASSWD, GROUP).is_err());
        assert!(find_in("4294967295", PASSWD, GROUP).is_err());
        assert!(find_in("eve", "eve:x:4294967295:4294967295::/:", GROUP).is_err());
    }

    #[test]
    fn a_pipe_in_place_of_a_file_holds_nobody_up() {
        let path = std::env::temp_dir().join(format!("mitos-passwd-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (told, answer) = std::sync::mpsc::channel();
        let fifo = path.clone();
        std::thread::spawn(move || told.send(read(&fifo)));
        let answer = answer.recv_timeout(std::time::Duration::from_secs(5));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(answer, Ok(String::new()));
    }

    #[test]
    fn a_group_that_is_named_is_the_only_one() {
        let ids = |wanted| find_in(wanted, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups));
        assert_eq!(ids("ann:staff"), Ok((1000, 50, vec![50])));
        assert_eq!(ids("ann:27"), Ok((1000, 27, vec![27])));
        assert_eq!(ids("4242:4343"), Ok((4242, 4343, vec![4343])));
        assert_eq!(ids("ann:"), Ok((1000, 1001, vec![1001, 27, 50])));
        assert_eq!(ids(":staff"), Ok((0, 50, vec![50])));
        assert!(find_in("ann:nogroup", PASSWD, GROUP).is_err());
    }
}
