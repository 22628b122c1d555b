//! Users of the sandbox, read from its own /etc/passwd and /etc/group: the binary is static and knows no NSS.

use std::path::Path;

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

/// Finds a user by name or number. A number that no line has is taken as it is, with the group of the same number.
pub fn find(name_or_number: &str) -> Result<User, String> {
    let passwd = read(Path::new("/etc/passwd"));
    let group = read(Path::new("/etc/group"));
    find_in(name_or_number, &passwd, &group)
}

fn read(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    // A missing file is an image without users: root and numbers still work.
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    let wanted = if wanted.is_empty() { "root" } else { wanted };
    let number = wanted.parse::<u32>().ok().filter(|uid| *uid != u32::MAX);
    let entries = || passwd.lines().filter_map(parse_passwd_line);
    let mut user = match entries().find(|user| user.name == wanted).or_else(|| entries().find(|user| Some(user.uid) == number)) {
        Some(user) => user,
        None => match (wanted, number) {
            ("root", _) | (_, Some(0)) => User { name: "root".into(), uid: 0, gid: 0, home: "/root".into(), groups: vec![] },
            (_, Some(uid)) => User { name: wanted.into(), uid, gid: uid, home: "/".into(), groups: vec![] },
            _ => return Err(format!("there is no user {wanted:?} in the sandbox's /etc/passwd")),
        },
    };
    user.groups = vec![user.gid];
    for line in group.lines() {
        let mut fields = line.split(':');
        let (Some(_), Some(_), Some(gid), Some(members)) = (fields.next(), fields.next(), fields.next(), fields.next()) else { continue };
        let Ok(gid) = gid.parse::<u32>() else { continue };
        if members.split(',').any(|member| member.trim() == user.name) && !user.groups.contains(&gid) && user.groups.len() < GROUPS_MAX {
            user.groups.push(gid);
        }
    }
    Ok(user)
}

fn parse_passwd_line(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields.as_slice() else { return None };
    let home = if home.is_empty() { "/" } else { home };
    Some(User { name: (*name).into(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into(), groups: vec![] })
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
        assert_eq!(find_in("4242", PASSWD, GROUP).map(|user| (user.uid, user.gid)), Ok((4242, 4242)));
        assert!(find_in("nobody-here", PASSWD, GROUP).is_err());
        assert!(find_in("-1", PASSWD, GROUP).is_err());
        assert!(find_in("4294967295", PASSWD, GROUP).is_err());
    }
}
