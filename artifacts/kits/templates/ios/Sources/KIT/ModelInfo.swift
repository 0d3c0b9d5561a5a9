/// What the manifest of «source» says. Written by pocketphi «version»; write it again with the bundle.
public enum ModelInfo {
    /// SHA-256 of the manifest: the only bundle that this code accepts.
    public static let manifestSHA256 = "«manifest_sha256»"

    /// Size of all files, for a download's progress and for the room that it takes.
    public static let bundleBytes = «bundle_bytes»

    /// Memory that running takes with a cache of `context` tokens, as pocketphi predicts it.
    public static let memoryBytes = «memory_bytes»

    /// Tokens of a conversation that are planned for; the model itself takes «model_context».
    public static let context = «context»

    static let rules = Rules(
        context: context,
        chunk: «chunk»,
        rows: «rows»,
        longRopeAfter: «long_rope_after or "nil"»,
        stops: [«stops | join(", ")»],
        ring: «ring»
    )

    static let chat = ChatFormat(
        begin: «chat.begin | swift»,
        default: «chat.default | swift»,
        roles: [
<% for role, (before, after) in chat.roles.items() %>
            "«role»": (before: «before | swift», after: «after | swift»),
<% endfor %>
        ],
        answer: «chat.answer | swift»,
        strips: [«chat.strips | sort | map("swift") | join(", ")»]
    )
}
