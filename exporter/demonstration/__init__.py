"""A private hypervisor with guests whose load is known, for `make run` and the live tests.

Nothing here touches a libvirt that is already on the machine: the daemon, its sockets, its files, its
guests and their network live in namespaces of their own and end with the process that started them.
"""
