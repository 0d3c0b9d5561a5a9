package «package»

/** What the manifest of «source» says. Written by pocketphi «version»; write it again with the bundle. */
object ModelInfo {
    /** SHA-256 of the manifest: the only bundle that this code accepts. */
    const val MANIFEST_SHA256 = "«manifest_sha256»"

    /** Size of all files, for a download's progress and for the room that it takes. */
    const val BUNDLE_BYTES = «bundle_bytes»L

    /** Memory that running takes with a cache of [CONTEXT] tokens, as pocketphi predicts it. */
    const val MEMORY_BYTES = «memory_bytes»L

    /** Tokens of a conversation that are planned for; the model itself takes «model_context». */
    const val CONTEXT = «context»

    val rules = Rules(
        context = CONTEXT,
        chunk = 0,
        rows = 0,
        longRopeAfter = «long_rope_after or "null"»,
        stops = setOf(«stops | join(", ")»),
        ring = 0
    )

    val chat = ChatFormat(
        begin = «chat.begin | kotlin»,
        default = «chat.default | kotlin»,
        roles = mapOf(
<% for role, (before, after) in chat.roles.items() %>
            "«role»" to Pair(«before | kotlin», «after | kotlin»)«"," if not loop.last»
<% endfor %>
        ),
        answer = «chat.answer | kotlin»,
        strips = setOf(«chat.strips | sort | map("kotlin") | join(", ")»)
    )
}
