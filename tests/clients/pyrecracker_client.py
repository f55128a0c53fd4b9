"""Drives a boot, a snapshot and its restore by the pyrecracker package."""

import sys

from pyrecracker.client import FirecrackerClient
from pyrecracker.client_types import (
    VM,
    ActionType,
    BootSource,
    Drive,
    InstanceActionInfo,
    MachineConfiguration,
    SnapshotCreateParams,
    SnapshotLoadParams,
    VMState,
)

what, socket, *rest = sys.argv[1:]
client = FirecrackerClient(socket)
if what == "boot":
    kernel, root, arguments = rest
    client.put_machine_config(MachineConfiguration(mem_size_mib=128, vcpu_count=1))
    client.put_boot_source(BootSource(kernel_image_path=kernel, boot_args=arguments))
    client.put_drives(
        Drive(drive_id="rootfs", is_root_device=True, is_read_only=True, path_on_host=root)
    )
    client.put_actions(InstanceActionInfo(ActionType.INSTANCE_START))
elif what == "save":
    state, memory = rest
    client.patch_vm(VM(VMState.PAUSED))
    client.put_snapshot_create(SnapshotCreateParams(state, memory))
elif what == "restore":
    state, memory = rest
    client.put_snapshot_load(
        SnapshotLoadParams(state, mem_file_path=memory, resume_vm=True)
    )
print("driven")
