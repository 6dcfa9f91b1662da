// One function of a package, loaded on a compute unit.

import CoreML
import Foundation

typealias Half = Float16

struct Program {
    let model: MLModel

    /// Compile a package once; its functions are loaded from the result one by one.
    static func compile(_ package: URL) async throws -> URL {
        try await MLModel.compileModel(at: package)
    }

    init(_ compiled: URL, function: String, units: MLComputeUnits) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        configuration.functionName = function
        model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
    }

    func run(
        _ inputs: [String: MLFeatureValue], state: MLState? = nil
    ) throws -> any MLFeatureProvider {
        let provider = try MLDictionaryFeatureProvider(dictionary: inputs)
        if let state {
            return try model.prediction(from: provider, using: state)
        }
        return try model.prediction(from: provider)
    }
}

func value(_ numbers: [Int], shape: [Int]) -> MLFeatureValue {
    MLFeatureValue(shapedArray: MLShapedArray<Int32>(scalars: numbers.map(Int32.init), shape: shape))
}

func value(_ numbers: [Half], shape: [Int]) -> MLFeatureValue {
    MLFeatureValue(shapedArray: MLShapedArray<Half>(scalars: numbers, shape: shape))
}

extension MLFeatureProvider {
    func halves(_ name: String) -> MLShapedArray<Half> {
        featureValue(for: name)!.shapedArrayValue(of: Half.self)!
    }

    func integers(_ name: String) -> MLShapedArray<Int32> {
        featureValue(for: name)!.shapedArrayValue(of: Int32.self)!
    }
}
