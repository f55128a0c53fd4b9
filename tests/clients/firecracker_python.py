"""Drives a boot by the firecracker-python package: configure, start, pause, resume, and what is refused."""

import sys

from firecracker.api import Api
from firecracker.exceptions import APIError

socket, kernel, root, arguments = sys.argv[1:]
api = Api(socket)

assert api.describe.get().json()["state"] == "Not started"
assert api.version.get().json()["firecracker_version"]
api.machine_config.put(vcpu_count=1, mem_size_mib=256, track_dirty_pages=False)
api.boot.put(kernel_image_path=kernel, boot_args=arguments)
api.drive.put(
    drive_id="rootfs",
    path_on_host=root,
    is_root_device=True,
    is_read_only=True,
    cache_type="Unsafe",
    io_engine="Sync",
)
api.mmds.put(latest={"meta-data": {"instance-id": "i-1"}})
assert api.mmds.get().json()["latest"]["meta-data"]["instance-id"] == "i-1"
config = api.vm_config.get().json()
assert config["machine-config"]["mem_size_mib"] == 256, config
assert config["drives"][0]["path_on_host"] == root, config

api.actions.put(action_type="InstanceStart")
assert api.describe.get().json()["state"] == "Running"
for again in (
    lambda: api.actions.put(action_type="InstanceStart"),
    lambda: api.machine_config.put(vcpu_count=2, mem_size_mib=256),
):
    try:
        again()
        raise AssertionError("a running VM takes what it must refuse")
    except APIError as error:
        assert "not supported after starting the microVM" in str(error), error
api.vm.patch(state="Paused")
assert api.describe.get().json()["state"] == "Paused"
api.vm.patch(state="Resumed")
api.close()
print("driven")
