// What the kits use of os, of Darwin's mach interface, and of Foundation where Linux has it not.
import Foundation

public typealias mach_port_t = UInt32
public typealias mach_msg_type_number_t = UInt32
public typealias natural_t = UInt32
public typealias integer_t = Int32
public typealias task_flavor_t = UInt32
public typealias kern_return_t = Int32

public let KERN_SUCCESS: kern_return_t = 0
public let TASK_VM_INFO: Int32 = 22

public struct task_vm_info_data_t {
    public var phys_footprint: UInt64 = 0

    public init() {}
}

public nonisolated(unsafe) var mach_task_self_: mach_port_t = 1

public func task_self_trap() -> mach_port_t { 1 }

public func task_info(
    _: mach_port_t,
    _: task_flavor_t,
    _: UnsafeMutablePointer<integer_t>,
    _: UnsafeMutablePointer<mach_msg_type_number_t>
) -> kern_return_t { KERN_SUCCESS }

public func os_proc_available_memory() -> Int { 1 << 40 }

extension URL {
    public static var applicationSupportDirectory: URL { temporaryDirectory.appending(path: "support") }
}
