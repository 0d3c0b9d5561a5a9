import Foundation

/// Runs pieces of work one after the other, in the order in which they were added: two answers never share the model's cache.
final class Turns: @unchecked Sendable { // `last` is read and written under the lock only
    private let lock = NSLock()
    private var last: Task<Void, Never>?

    /// Cancelling the task does not take the work out of the line: it begins in its turn and finds itself cancelled.
    @discardableResult
    func add(_ work: @escaping @Sendable () async -> Void) -> Task<Void, Never> {
        lock.withLock {
            let task = Task { [last] in
                await last?.value
                await work()
            }
            last = task
            return task
        }
    }
}
