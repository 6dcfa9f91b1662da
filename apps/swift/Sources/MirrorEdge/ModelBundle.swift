// The bundle: what its manifest says, as `mirror_edge/manifest.py` has it.

import CryptoKit
import Foundation

/// `mirror_edge.json`.
public struct Manifest: Decodable, Sendable {
    public let name: String
    public let schema: Int
    public let format: String
    public let target: Target
    public let draft: Draft?
    public let files: [String: File]
    public let packages: [String: Package]

    /// The target, cut behind `exitLayer`. Its three parts are functions of one package.
    public struct Target: Decodable, Sendable {
        public let model: Model
        public let exitLayer: Int
        public let prefix: String
    }

    public struct Draft: Decodable, Sendable {
        public let model: Model
        public let branchRows: Int
    }

    public struct Model: Decodable, Sendable {
        public let vocabulary: Int
        public let context: Int
        public let layers: Int
        public let kvHeads: Int
        public let headSize: Int
        public let dtype: String
    }

    public struct File: Decodable, Sendable {
        public let bytes: Int
        public let sha256: String
    }

    /// Functions of one `.mlpackage`, by name, with what goes in and comes out.
    public struct Package: Decodable, Sendable {
        public let system: String
        public let functions: [String: Function]
    }

    public struct Function: Decodable, Sendable {
        public let inputs, outputs, states: [Feature]

        public func shapes(_ name: String) -> [[Int]] {
            (inputs + outputs + states).first { $0.name == name }?.shapes ?? []
        }
    }

    public struct Feature: Decodable, Sendable {
        public let name: String
        public let dtype: String
        public let shapes: [[Int]]
    }
}

public struct BundleError: Error, CustomStringConvertible {
    public let description: String
}

/// A folder with the manifest, the packages, and the tokenizer's files as Hugging Face names them:
/// `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` (`eos_token_id` ends an
/// answer) and `chat_template.jinja`. swift-transformers' `AutoTokenizer.from(modelFolder:)` reads
/// such a folder.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest

    public init(folder: URL) throws {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let data = try Data(contentsOf: folder.appending(path: "mirror_edge.json"))
        manifest = try decoder.decode(Manifest.self, from: data)
        self.folder = folder
        guard manifest.schema == 1, manifest.format == "coreml",
            manifest.target.model.dtype == "float16"
        else {
            throw BundleError(description: "\(folder.path): is no bundle of Core ML programs in float16.")
        }
        for (name, file) in manifest.files {
            let content = try Data(contentsOf: folder.appending(path: name), options: .mappedIfSafe)
            let digest = SHA256.hash(data: content).map { String(format: "%02x", $0) }.joined()
            guard content.count == file.bytes, digest == file.sha256 else {
                throw BundleError(description: "\(name): was changed; copy the bundle again.")
            }
        }
    }
}
