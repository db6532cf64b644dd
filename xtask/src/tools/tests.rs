//! A missing tool is installed where that is allowed, and otherwise asked for by name.

use super::*;

#[test]
fn installation_asks_for_the_package() {
    let lines = |installer| {
        let runs = REDIS.installation(installer).expect("an installer");
        runs.map(|run| run.to_string()).join("\n")
    };
    assert!(
        lines(Installer::Apt)
            .ends_with(" apt-get -qq install -y --no-install-recommends redis-server")
    );
    assert!(lines(Installer::SudoApt).contains(" sudo -n apt-get -qq update\n"));
}

#[test]
fn without_an_installer_the_message_says_what_to_do() {
    let error = CXX.installation(Installer::None).expect_err("no installer");
    assert_eq!(
        error.to_string(),
        "`g++` is not in PATH, and the fuzz targets cannot run without it. Install it first, on \
         Debian and Ubuntu by `apt-get install g++`"
    );
}

#[test]
fn a_present_tool_is_enough() {
    let shell = Tool {
        program: "sh",
        package: "dash",
        needed_by: "this test",
    };
    assert!(shell.ensure().is_ok());
}

#[test]
fn an_old_python_is_refused_with_its_version() {
    let error = new_enough(309).expect_err("too old").to_string();
    assert_eq!(
        error,
        "`python3` is Python 3.9, and the tests of the Python package need 3.11 or later"
    );
    assert!(new_enough(311).is_ok());
}

#[test]
fn libclang_is_told_from_its_neighbours() {
    for line in [
        "libclang-14.so.1 (libc6,x86-64) => /usr/lib",
        "libclang.so.1 => /usr/lib",
    ] {
        assert!(is_libclang(line), "{line}");
    }
    for line in [
        "libclang-cpp.so.14 => /usr/lib",
        "libclangd.so",
        "libc.so.6",
    ] {
        assert!(!is_libclang(line), "{line}");
    }
}
