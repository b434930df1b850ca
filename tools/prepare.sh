#!/bin/sh
# What the system must bring before `python -m venv` and pip can do the rest: a Python 3.11 to 3.13 that works and has
# venv, a C compiler, and the headers of Python and GMP (libp2p needs fastecdsa, which comes as source only).
#
# Prints on stdout the Python to use, and nothing else. What is missing is installed by root on Debian and its kin;
# anyone else is told in one sentence what is missing and the command that installs it, exit code 1.
set -eu

say() { printf '%s\n' "$*" >&2; }

# A name in PATH proves nothing: pyenv puts one there for every version it has, chosen or not.
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

compiler() {
    for name in "${CC:-cc}" gcc clang; do
        if command -v "$name" >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return
        fi
    done
}

# Does it compile? Asked of the compiler itself, because headers have no one place.
compiles() { # compiler, include directory, header
    printf '#include <stddef.h>\n#include <stdio.h>\n#include <%s>\nint main(void) { return 0; }\n' "$3" |
        "$1" ${CPPFLAGS:-} ${CFLAGS:-} -I"$2" -fsyntax-only -x c - >/dev/null 2>&1
}

# Says in $python, $version, $missing (words) and $packages (Debian's names) how things stand.
look() {
    python='' version='' missing='' packages=''
    # A complete one is better than a newer one that lacks its venv.
    for complete in yes no; do
        for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
            found=$(version_of "$name")
            case $found in 3.11 | 3.12 | 3.13) ;; *) continue ;; esac
            if [ "$complete" = no ] || has_venv "$name"; then
                python=$name version=$found
                break 2
            fi
        done
    done
    if [ -z "$python" ]; then
        missing='Python 3.11, 3.12 or 3.13' packages='python3 python3-venv python3-dev'
    elif ! has_venv "$python"; then
        missing="the venv module of Python $version" packages="python$version-venv"
    fi
    cc=$(compiler)
    if [ -z "$cc" ] || ! compiles "$cc" . stdlib.h; then
        # Headers cannot be looked for without a compiler; asking for those too does no harm.
        missing="${missing:+$missing, }a C compiler, the headers of Python and GMP"
        packages="${packages:+$packages }gcc libc6-dev libgmp-dev ${version:+python$version-dev}"
        return
    fi
    if [ -n "$python" ]; then
        include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
        if ! compiles "$cc" "$include" Python.h; then
            missing="${missing:+$missing, }the headers of Python $version"
            packages="${packages:+$packages }python$version-dev"
        fi
    fi
    if ! compiles "$cc" . gmp.h; then
        missing="${missing:+$missing, }the headers of GMP"
        packages="${packages:+$packages }libgmp-dev"
    fi
}

look
if [ -n "$missing" ] && command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    say "Installing $missing: apt-get install $packages"
    # A package list may be old, or absent as on a new machine; the words are apt's own if it fails.
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $packages; } >&2 || true
    look
fi
if [ -n "$missing" ]; then
    if command -v apt-get >/dev/null 2>&1; then
        command="sudo apt-get install -y $packages"
    elif command -v dnf >/dev/null 2>&1; then
        command='sudo dnf install -y python3.12 python3.12-devel gcc gmp-devel'
    elif [ "$(uname)" = Darwin ]; then
        command='xcode-select --install; brew install python@3.13 gmp && export CPPFLAGS=-I$(brew --prefix)/include LDFLAGS=-L$(brew --prefix)/lib'
    else
        command='install them with your package manager'
    fi
    say "Missing: $missing. To install: $command"
    exit 1
fi
command -v "$python"
