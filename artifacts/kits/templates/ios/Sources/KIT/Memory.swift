import Foundation
import os

/// The device has too little memory left for this app.
public struct NotEnoughMemory: LocalizedError {
    public let errorDescription: String?
}

/// Bytes that this app uses, as the system counts them, and that it may still take before the system ends it.
public struct MemoryReport: Sendable {
    public let used: Int
    /// nil where the system sets no limit, as on a Mac.
    public let available: Int?

    /// This process, once: each call would count another use. The variable `mach_task_self_` could be changed by other threads.
    private static let task = task_self_trap()

    /// As things are now.
    public static var now: MemoryReport {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
        let result = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(task, task_flavor_t(TASK_VM_INFO), $0, &count)
            }
        }
        let used = result == KERN_SUCCESS ? Int(info.phys_footprint) : 0
        #if os(iOS)
        return MemoryReport(used: used, available: os_proc_available_memory())
        #else
        return MemoryReport(used: used, available: nil)
        #endif
    }

    /// Throws where the model would not fit: loading it anyway would get the app ended.
    static func require(_ bytes: Int) throws {
        if let available = now.available, available < bytes {
            throw NotEnoughMemory(errorDescription: "the model needs \(bytes) bytes, \(available) are available")
        }
    }
}
