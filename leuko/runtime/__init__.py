"""Exported detectors at work: with numpy, OpenCV and onnxruntime (or OpenVINO) alone, without torch.

from leuko.runtime import ExportedDetector

detector = ExportedDetector.load("fcos.onnx")
for cell in detector.predict(pixels):  # [H, W, 3] uint8 RGB, or a file
    print(cell.type, cell.score, cell.box)
"""

from .detector import ExportedDetector

__all__ = ["ExportedDetector"]
