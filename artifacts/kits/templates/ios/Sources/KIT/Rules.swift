/// A call of the model with `tokens[start ..< start + count]` at position `start`.
struct Call: Equatable {
    let function: String
    let start: Int
    let count: Int
}

/// Why an answer ended: at a stop token, at the caller's limit, or because the cache is full.
enum End: String {
    case stop, limit, context
}

/// What the bundle's manifest says of running the model.
struct Rules {
    /// Tokens of a conversation.
    let context: Int
    /// Tokens of a prefill call, 0 for any number.
    let chunk: Int
    /// Rows of the cache, where calls are chunks.
    let rows: Int
    /// A sequence that grows beyond it is computed again from its start.
    let longRopeAfter: Int?
    /// Tokens that end an answer.
    let stops: Set<Int>
    /// Position p lies in row p mod `ring`, which no call's tokens may go around; 0 where each has a row of its own.
    let ring: Int

    /// The calls that bring the cache from `seen` to `tokens`: only what is new, unless the start differs or LongRoPE changes its
    /// factors in between. Where the first call starts at 0, the cache is reset before it.
    func calls(seen: [Int], tokens: [Int]) -> [Call] {
        var past = seen.count
        if past >= tokens.count || !tokens.starts(with: seen) || switches(past, tokens.count) {
            past = 0
        }
        var calls: [Call] = []
        while past < tokens.count {
            let left = tokens.count - past
            let row = ring > 0 ? past % ring : past
            let room = min(left, chunk, ring > 0 ? ring - row : left)
            let call: Call
            if chunk == 0 {
                call = Call(function: left == 1 && past > 0 ? "decode" : "prefill", start: past, count: left)
            } else if room > 1 && row + chunk <= rows {
                call = Call(function: "prefill", start: past, count: room)
            } else {
                call = Call(function: "decode", start: past, count: 1)
            }
            calls.append(call)
            past += call.count
        }
        return calls
    }

    /// Whether an answer ends with `token`, where `made` tokens with it are made for a prompt of `prompt` tokens.
    func end(token: Int, made: Int, prompt: Int, limit: Int) -> End? {
        if stops.contains(token) { return .stop }
        if made >= limit { return .limit }
        return prompt + made >= context ? .context : nil
    }

    private func switches(_ past: Int, _ total: Int) -> Bool {
        guard let longRopeAfter else { return false }
        return past > 0 && past <= longRopeAfter && longRopeAfter < total
    }
}
