#!/usr/bin/env bash
# Builds the guest that ships with Berth from Debian packages: kernel, init, root image, manifest.
#
#   resources/guest/build.sh [WORK_FOLDER]
#
# Runs on Debian 12 and installs the packages it needs (as root). Leaves vmlinux.zst, rootfs.erofs.zst and MANIFEST.toml
# beside this script. The same packages give the same bytes.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$here/../../target/guest}
packages=(bc bison busybox-static erofs-utils flex gcc libelf-dev linux-source-6.12 make patch xz-utils zstd)
# Fixed, so that a build is reproducible: who, where, when, and the image's identity.
export KBUILD_BUILD_USER=berth KBUILD_BUILD_HOST=berth KBUILD_BUILD_VERSION=1
export SOURCE_DATE_EPOCH=1767225600
export KBUILD_BUILD_TIMESTAMP="@$SOURCE_DATE_EPOCH"
uuid=62657274-6800-4000-8000-000000000001

say() { printf 'guest: %s\n' "$*" >&2; }

install_packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing ${missing[*]}"
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
}

# Lays kernel.config over tinyconfig and fails if a line of it was not taken.
configure() {
    make -s -C "$source" O="$work/kernel" tinyconfig
    "$source/scripts/kconfig/merge_config.sh" -m -O "$work/kernel" "$work/kernel/.config" "$here/kernel.config" >/dev/null
    make -s -C "$source" O="$work/kernel" olddefconfig
    local line name wrong=0
    while read -r line; do
        case "$line" in
        CONFIG_*) grep -qxF "$line" "$work/kernel/.config" || { say "not taken: $line"; wrong=1; } ;;
        "# CONFIG_"*" is not set")
            name=${line#\# } name=${name%% *}
            ! grep -q "^$name=" "$work/kernel/.config" || { say "still set: $name"; wrong=1; } ;;
        esac
    done <"$here/kernel.config"
    return $wrong
}

programs_sum() { cat "$here"/init/*.[ch] "$here"/tools/*.c | sha256sum | cut -d' ' -f1; }

patches_sum() { cat "$here"/patches/*.patch | sha256sum | cut -d' ' -f1; }

build_kernel() {
    source=$work/linux-source-6.12
    # Unpacked and patched anew only when the patches changed, so that a second build is a short one.
    if [ "$(cat "$source/.berth-patches" 2>/dev/null)" != "$(patches_sum)" ]; then
        say "unpacking the kernel's source"
        rm -rf "$source"
        tar -C "$work" -xf /usr/src/linux-source-6.12.tar.xz
        cat "$here"/patches/*.patch | patch -s -d "$source" -p1
        patches_sum >"$source/.berth-patches"
    fi
    mkdir -p "$work/kernel"
    configure
    say "building the kernel"
    make -s -C "$source" O="$work/kernel" -j"$(nproc)" vmlinux
    strip --strip-all --remove-section=.comment -o "$work/vmlinux" "$work/kernel/vmlinux"
    release=$(make -s -C "$source" O="$work/kernel" kernelrelease)
}

# A program of ours for the root image: C without a libc.
build_program() { # source, program
    local nolibc=$source/tools/include/nolibc
    gcc -O2 -Wall -Werror -static -nostdlib -ffreestanding -fno-stack-protector -no-pie -fno-pie \
        -fno-asynchronous-unwind-tables -Wl,--build-id=none -Wl,-z,norelro -Wl,-z,noseparate-code -s \
        -I "$nolibc" -include "$nolibc/nolibc.h" -o "$2" "$here/$1" -lgcc
}

build_root() {
    local root=$work/root applet
    rm -rf "$root"
    mkdir -p "$root"/{dev,etc,lib,lib64,mnt,opt,proc,root,run,srv,sys,tmp,usr,var}
    mkdir -p "$root"/usr/{bin,lib,local/bin,local/sbin,share} "$root"/var/{log,tmp,cache,lib}
    # One folder of programs under four names: fewer look-ups in the guest.
    ln -s usr/bin "$root/bin"
    ln -s usr/bin "$root/sbin"
    ln -s bin "$root/usr/sbin"
    cp -a "$here/root/." "$root/"
    install -m 755 /bin/busybox "$root/usr/bin/busybox"
    for applet in $(/bin/busybox --list); do
        case "$applet" in busybox | init | linuxrc) continue ;; esac
        ln -s busybox "$root/usr/bin/$applet"
    done
    build_program init/init.c "$root/usr/bin/init"
    build_program tools/vsock.c "$root/usr/bin/vsock"
    ln -s ../run "$root/var/run"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    chmod 700 "$root/root"
    # Not compressed: unpacking would run in the guest's kernel, which some hosts interpret.
    rm -f "$work/rootfs.erofs"
    mkfs.erofs -T"$SOURCE_DATE_EPOCH" -U"$uuid" --all-root "$work/rootfs.erofs" "$root" >/dev/null
}

version() { dpkg-query -W -f '${Version}' "$1"; }
sum() { sha256sum "$1" | cut -d' ' -f1; }

artefact() { # name, description, packages and licences
    cat <<EOF

[[artefact]]
file = "$1.zst"
what = "$2"
size = $(stat -c %s "$here/$1.zst")
sha256 = "$(sum "$here/$1.zst")"
unpacked_size = $(stat -c %s "$work/$1")
unpacked_sha256 = "$(sum "$work/$1")"
made_from = [$3]
EOF
}

write_manifest() {
    {
        echo "# Written by build.sh: what the artefacts in this folder are and what they were made from."
        echo "kernel_release = \"$release\""
        echo "kernel_config_sha256 = \"$(sum "$here/kernel.config")\""
        echo "kernel_patches_sha256 = \"$(patches_sum)\""
        echo "programs_sha256 = \"$(programs_sum)\""
        artefact vmlinux "Linux kernel, ELF" \
            "{ package = \"linux-source-6.12\", version = \"$(version linux-source-6.12)\", licence = \"GPL-2.0-only\" }"
        artefact rootfs.erofs "root image, erofs, not compressed" \
            "{ package = \"busybox-static\", version = \"$(version busybox-static)\", licence = \"GPL-2.0-only\" }, { package = \"linux-source-6.12 (tools/include/nolibc)\", version = \"$(version linux-source-6.12)\", licence = \"LGPL-2.1 OR MIT\" }"
    } >"$here/MANIFEST.toml"
}

install_packages
mkdir -p "$work"
work=$(cd "$work" && pwd)
build_kernel
build_root
for name in vmlinux rootfs.erofs; do
    zstd -q -19 -f -o "$here/$name.zst" "$work/$name"
    chmod 644 "$here/$name.zst"
done
write_manifest
say "done: kernel $release, $(du -ch "$here"/*.zst | tail -1 | cut -f1) packed"
