Pod::Spec.new do |s|
  s.name = "«name»"
  s.version = "«version»"
  s.summary = "«source» with onnxruntime-genai"
  s.homepage = "https://example.com"
  s.license = { :type => "Apache-2.0" }
  s.author = "pocketphi"
  s.source = { :path => "." }
  s.ios.deployment_target = "16.4"
  s.swift_version = "5.9"
  s.source_files = "Sources/«name»/*.swift"
  s.dependency "onnxruntime-genai-objc", "«genai_version»"
  s.test_spec "Tests" do |tests|
    tests.source_files = "Tests/«name»Tests/*.swift"
    tests.resources = "Tests/«name»Tests/vectors.json"
  end
end
