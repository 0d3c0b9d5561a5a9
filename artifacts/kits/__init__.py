"""Code that runs a bundle in an app: Swift and Kotlin from templates, and the logic that they are checked against."""
