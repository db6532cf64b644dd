"""Writes stand-ins for the CUDA libraries that PyPI's torch is linked to.

Usage: `stub_libraries.py SITE_PACKAGES`. PyPI has no torch for processors alone; its one needs
gigabytes of CUDA libraries, if only to be loaded. A stand-in has the names that torch asks for,
under the versions that it asks for (the loader ends the process otherwise), and every function
returns 1, an error. CUDA's own runtime and CUPTI are called while torch is loaded and must be the
real ones. Needs a C compiler and binutils.
"""

import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Libraries by the prefix of their functions' names.
PREFIXES = {
    "libcublas": "cublas",
    "libcublasLt": "cublasLt",
    "libcudnn": "cudnn",
    "libcufft": "cufft",
    "libcufile": "cuFile",
    "libcurand": "curand",
    "libcusolver": "cusolver",
    "libcusparse": "cusparse",
    "libcusparseLt": "cusparseLt",
    "libnccl": "nccl",
    "libnvrtc": "nvrtc",
    "libnvJitLink": "nvJitLink",
    "libnvshmem_host": "nvshmem",
}


def stem(library):
    """The name of a library without its version: `libnccl` of `libnccl.so.2`."""
    return library.partition(".so")[0]


def owner(symbol):
    """The library whose functions are named like this one."""
    found = [name for name, prefix in PREFIXES.items() if symbol.startswith(prefix)]
    return max(found, key=lambda name: len(PREFIXES[name]), default=None)


def wanted(text):
    """What a shared object needs, out of `readelf -W -d -V --dyn-syms`.

    Returns its libraries, and (library's stem, version or "", symbol) for each open symbol.
    """
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", text))
    versions, library = {}, None
    for line in text.splitlines():
        if entry := re.search(r"\bVersion: \d+\s+File: (\S+)", line):
            library = stem(entry[1])
        elif entry := re.search(r"\bName: (\S+)\s+Flags: .*Version: \d+", line):
            versions[entry[1]] = library
    symbols = set()
    for name, _, version in re.findall(r"\bUND ([^\s@]+)(@+(\S+))?", text):
        library = versions.get(version) if version else owner(name)
        if library in PREFIXES:
            symbols.add((library, version, name))
    return needed, symbols


def write(library, symbols, directory):
    """Compiles the stand-in for `library` with the symbols of each version."""
    names = sorted(set().union(*symbols.values()))
    source = "".join(f"int {name}(void) {{ return 1; }}\n" for name in names)
    script = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
        for version, names in symbols.items()
        if version
    )
    command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}"]
    with tempfile.NamedTemporaryFile("w", suffix=".map") as versions:
        versions.write(script)
        versions.flush()
        if script:
            command.append(f"-Wl,--version-script={versions.name}")
        command += ["-o", str(directory / library), "-x", "c", "-"]
        subprocess.run(command, input=source, text=True, check=True)


def main(packages):
    """Stands in for what torch needs and nobody has."""
    libraries = packages / "torch" / "lib"
    present = [*libraries.glob("*.so*"), *packages.glob("nvidia/*/lib/*.so*")]
    present = {path.name for path in present}
    needed, symbols = set(), collections.defaultdict(lambda: collections.defaultdict(set))
    for path in sorted(libraries.glob("*.so")):
        command = ["readelf", "-W", "-d", "-V", "--dyn-syms", str(path)]
        text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        libraries_of_it, symbols_of_it = wanted(text)
        needed |= libraries_of_it
        for library, version, name in symbols_of_it:
            symbols[library][version].add(name)
    for library in sorted(needed - present):
        if stem(library) in PREFIXES:
            write(library, symbols[stem(library)], libraries)
            print(f"{library}: a stand-in")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
