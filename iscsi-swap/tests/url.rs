//! Goal: a URL means what libiscsi makes of it, everything else is an error that says what to write,
//! and no text shows a secret.
//! Method: lists of URLs; every error, name and debug form of those that hold a secret is searched.

use netswap_iscsi::{Digest, Entropy, IscsiListUrl, IscsiUrl, Secret, SecretSource, WritePolicy};
use netswap_net::UrlHost;

fn parse(url: &str) -> IscsiUrl {
    url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
}

#[test]
fn what_is_shown_of_a_url_is_read_as_the_same_unit() {
    let url: IscsiUrl =
        "iscsi://user5secret@[::1]:3290/iqn.test:dis@k%2f%3f%25/300".parse().unwrap();
    assert_eq!(url.target, "iqn.test:dis@k/?%");
    let again: IscsiUrl = url.to_string().parse().unwrap();
    assert_eq!(again.portal.host, url.portal.host);
    assert_eq!((again.target, again.lun), (url.target, 300));
}

#[test]
fn users_hosts_and_ports_of_every_kind() {
    let name = |name: &str| UrlHost::Name(name.into());
    let address = |text: &str| UrlHost::Address(text.parse().unwrap());
    let given = |text: &str| SecretSource::Given(Secret::new(text.as_bytes()).unwrap());
    let env = || SecretSource::Environment;
    for (url, host, port, user, password) in [
        ("iscsi://server/iqn.a:b/0", name("server"), 3260, None, env()),
        ("iscsi://10.0.0.2:7/iqn.a:b/0", address("10.0.0.2"), 7, None, env()),
        ("iscsi://[::1]:7/iqn.a:b/0", address("::1"), 7, None, env()),
        ("iscsi://me@server/iqn.a:b/0", name("server"), 3260, Some("me"), env()),
        ("iscsi://me%word@[::1]/iqn.a:b/0", address("::1"), 3260, Some("me"), given("word")),
        ("iscsi://me:word@server:7/iqn.a:b/0", name("server"), 7, Some("me"), given("word")),
        // Passwords are not unescaped; the first of % and : that is there begins them.
        ("iscsi://me%a%2f:/b@s/iqn.a:b/0", name("s"), 3260, Some("me"), given("a%2f:/b")),
        ("iscsi://a:b%c@s/iqn.a:b/0", name("s"), 3260, Some("a:b"), given("c")),
    ] {
        let portal = parse(url).portal;
        assert_eq!((portal.host, portal.port), (host, port), "{url}");
        assert_eq!(portal.user.as_deref(), user, "{url}");
        assert_eq!(portal.password, password, "{url}");
    }
}

#[test]
fn targets_and_units() {
    for (url, target, lun) in [
        ("iscsi://s/iqn.2026-01.a:b/0", "iqn.2026-01.a:b", 0),
        ("iscsi://s/eui.02004567A425678D/16383", "eui.02004567A425678D", 16383),
        ("iscsi://s/iqn.a%3ab%2Fc/007", "iqn.a:b/c", 7),
    ] {
        let parsed = parse(url);
        assert_eq!((&*parsed.target, parsed.lun), (target, lun), "{url}");
    }
    let list = |url: &str| url.parse::<IscsiListUrl>().unwrap();
    for url in ["iscsi://s", "iscsi://s/", "iscsi://me%word@s:1?initiator=iqn.me"] {
        assert_eq!(list(url).target, None);
    }
    for url in ["iscsi://s/iqn.a:b", "iscsi://s/iqn.a%3ab/"] {
        assert_eq!(list(url).target.as_deref(), Some("iqn.a:b"));
        assert_eq!(list(url).to_string(), "iscsi://s/iqn.a:b");
    }
    assert_eq!(list("iscsi://s:1").to_string(), "iscsi://s:1");
}

#[test]
fn parameters_of_every_kind() {
    let url = parse(
        "iscsi://me%mine@s/iqn.a:b/0?target_user=you&target_password=yours%40&header_digest=crc32c\
         &data_digest=prefer&initiator=iqn.c%3Ad&write=sync",
    );
    assert_eq!(url.portal.target_user.as_deref(), Some("you"));
    let yours = Secret::new(b"yours%40").unwrap();
    assert_eq!(url.portal.target_password, SecretSource::Given(yours));
    assert_eq!(url.portal.header_digest, Digest::Crc32c);
    assert_eq!(url.portal.data_digest, Digest::Prefer);
    assert_eq!(url.portal.initiator.as_deref(), Some("iqn.c:d"));
    assert_eq!(url.write, WritePolicy::SyncCache);
    let url =
        parse("iscsi://me@s/iqn.a/0?password_file=/a b&target_user=t&target_password_file=c&");
    assert_eq!(url.portal.password, SecretSource::File("/a b".into()));
    assert_eq!(url.portal.target_password, SecretSource::File("c".into()));
    assert_eq!(url.write, WritePolicy::Fua);
}

#[test]
fn what_is_no_url_says_what_to_write() {
    let long = format!("iscsi://s/{}/0", "a".repeat(224));
    let huge = format!("iscsi://s/{}/0", "a".repeat(5000));
    for (url, hint) in [
        ("nfs://s/iqn.a/0", "write iscsi://host/target/lun"),
        ("iscsi://", "is no host"),
        ("iscsi:///iqn.a/0", "is no host"),
        ("iscsi://::1/iqn.a/0", "in brackets"),
        ("iscsi://s:0/iqn.a/0", "the port is \"0\": write a number from 1 to 65535"),
        ("iscsi://s", "names no logical unit: write /target/lun"),
        ("iscsi://s/iqn.a", "write /target/lun"),
        ("iscsi://s/iqn.a/", "write /target/lun"),
        ("iscsi://s//0", "write /target/lun"),
        ("iscsi://s/iqn.a/0/1", "the LUN is \"0/1\": write a number from 0 to 16383"),
        ("iscsi://s/iqn.a/16384", "from 0 to 16383"),
        ("iscsi://s/iqn.a/+1", "from 0 to 16383"),
        ("iscsi://s/iqn a/1", "is no iSCSI name"),
        ("iscsi://s/iqn%00a/1", "is no iSCSI name"),
        ("iscsi://s/iqn%ffa/1", "is no iSCSI name"),
        ("iscsi://s/iqn%g0/1", "two hexadecimal digits"),
        ("iscsi://s/iqn%ä/1", "two hexadecimal digits"),
        ("iscsi://s/iqn%/1", "two hexadecimal digits"),
        ("iscsi://s/iqn.a/0?initiator=", "is no iSCSI name"),
        ("iscsi://@s/iqn.a/0", "the user is empty"),
        ("iscsi://me%@s/iqn.a/0", "the password is empty"),
        ("iscsi://s/iqn.a/0?target_user=t", "write user@host"),
        ("iscsi://me@s/iqn.a/0?target_password=t", "without target_user"),
        ("iscsi://s/iqn.a/0?password_file=t", "without a user"),
        ("iscsi://me%p@s/iqn.a/0?password_file=t", "in the URL and in a file"),
        ("iscsi://me@s/iqn.a/0?target_password=p&target_password_file=t", "leave one out"),
        ("iscsi://me@s/iqn.a/0?target_password_file=t&target_password=p", "leave one out"),
        ("iscsi://s/iqn.a/0?write=fast", "known: fua, sync"),
        ("iscsi://s/iqn.a/0?data_digest=CRC32C", "data_digest=CRC32C: known: none, prefer, crc32c"),
        ("iscsi://s/iqn.a/0?write=fua&write=fua", "given twice"),
        ("iscsi://s/iqn.a/0?portals=10.0.0.3,other", "portals=other: write addresses"),
        ("iscsi://s/iqn.a/0?portals=", "portals=10.0.0.3"),
        ("iscsi://s/iqn.a/0?discard=yes", "discard=yes: known: on, off"),
        ("iscsi://s/iqn.a/0?discard", "discard=: known: on, off"),
        (
            "iscsi://s/iqn.a/0?iser=1",
            "known: target_user, target_password, header_digest, data_digest, initiator",
        ),
        (&long, "1 to 223 bytes"),
        (&huge, "the most is 4096"),
    ] {
        let error = url.parse::<IscsiUrl>().unwrap_err().to_string();
        assert!(error.contains(hint), "{url}: {error}");
    }
    for (url, hint) in [
        ("iscsi://s/iqn.a/0", "write iscsi://host or iscsi://host/target"),
        ("iscsi://s?write=fua", "unknown parameter \"write\""),
        ("iscsi://s?portals=10.0.0.3", "unknown parameter \"portals\""),
        ("iscsi://s?discard=on", "unknown parameter \"discard\""),
    ] {
        let error = url.parse::<IscsiListUrl>().unwrap_err().to_string();
        assert!(error.contains(hint), "{url}: {error}");
    }
}

#[test]
fn discards_are_off_unless_they_are_asked_for() {
    for (url, is_on) in [
        ("iscsi://s/iqn.a/0", false),
        ("iscsi://s/iqn.a/0?discard=off", false),
        ("iscsi://s/iqn.a/0?discard=on", true),
    ] {
        let config = parse(url).config([10, 0, 0, 2].into(), None, Entropy::default());
        assert_eq!((config.discard, config.examine), (is_on, is_on), "{url}");
    }
}

#[test]
fn other_portals_are_addresses_with_or_without_a_port() {
    let url = parse("iscsi://s:7/iqn.a/0?portals=10.0.0.3,[fe80::1]:9,fe80::2,[fe80::3]");
    let config = url.config("10.0.0.2".parse().unwrap(), None, Entropy::new([0; 32]));
    let all: Vec<String> = config.portals.iter().map(ToString::to_string).collect();
    assert_eq!(all, ["10.0.0.3:3260", "[fe80::1]:9", "[fe80::2]:3260", "[fe80::3]:3260"]);
    assert!(config.examine && config.portal.port() == 7);
}

#[test]
fn no_text_shows_a_secret() {
    let good = "iscsi://me%hunter2@s/iqn.a/0?target_user=t&target_password=hunter3";
    let url = parse(good);
    let config = url.config(
        "10.0.0.2".parse().unwrap(),
        url.portal.credentials(|_| None).unwrap(),
        Entropy::new([0x77; 32]),
    );
    assert_eq!(config.label, "iscsi://s/iqn.a/0");
    let mut texts = vec![url.to_string(), format!("{url:?} {url:#?} {config:?}")];
    for bad in [
        "iscsi:/me%hunter2@s/iqn.a/0",
        "http://me%hunter2@s/iqn.a/0",
        "iscsi://me%p@hunter2@s/iqn.a/0",
        "iscsi://me%p?hunter2@s/iqn.a/0",
        "iscsi://me:p?hunter2@s/iqn.a/0",
        "iscsi://me%hunter2/iqn.a/0",
        "iscsi://me%p@s:hunter2/iqn.a/0",
        "iscsi://me%hunter2@s/iqn.a",
        "iscsi://me%hunter2@s/iqn.a/x",
        "iscsi://me%hunter2@s/iqn.a/0?password_file=f",
        "iscsi://me@s/iqn.a/0?target_user=t&target_password=p&hunter2",
        "iscsi://me@s/iqn.a/0?target_user=t&target_password=p&hunter2=3",
        "iscsi://me@s/iqn.a/0?target_user=t&target_password=hunter2&target_password=p",
        "iscsi://me@s/iqn.a/0?target_password=hunter2",
    ] {
        let error = bad.parse::<IscsiUrl>().unwrap_err();
        texts.push(format!("{bad:.0}{error} {error:?}"));
    }
    for text in &texts {
        assert!(!text.contains("hunter"), "{text}");
        // The bytes as a list of numbers would be a secret as well.
        assert!(!text.contains("104, 117") && !text.contains("119, 119"), "{text}");
    }
}
