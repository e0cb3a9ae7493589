import torch

from bundle.losses.views import discriminator_views, draw_positions, take_slices

SHAPE = torch.Size((5, 1, 16, 24, 32))


def test_positions_repeat_for_the_same_seed_and_iteration_and_differ_for_others():
    first = draw_positions(SHAPE, seed=1, iteration=7)
    assert torch.equal(first, draw_positions(SHAPE, seed=1, iteration=7))
    assert not torch.equal(first, draw_positions(SHAPE, seed=1, iteration=8))
    assert not torch.equal(first, draw_positions(SHAPE, seed=2, iteration=7))


def test_positions_cover_every_slice_of_every_axis():
    positions = torch.cat([draw_positions(SHAPE, seed=0, iteration=i) for i in range(200)])
    assert [len(column.unique()) for column in positions.unbind(1)] == [16, 24, 32]


def test_slices_are_those_of_the_positions_for_any_shape_of_patch():
    volume, positions = torch.randn(SHAPE), draw_positions(SHAPE, 0, 0)
    sagittal, coronal, axial = take_slices(volume, positions)
    for sample, (x, y, z) in enumerate(positions.tolist()):
        assert torch.equal(sagittal[sample, 0], volume[sample, 0, x])
        assert torch.equal(coronal[sample, 0], volume[sample, 0, :, y])
        assert torch.equal(axial[sample, 0], volume[sample, 0, :, :, z])


def test_cubic_patches_give_the_same_slices_in_one_tensor():
    volume = torch.randn(2, 1, 8, 8, 8)
    positions = draw_positions(volume.shape, 0, 0)
    (slices,) = take_slices(volume, positions)
    assert torch.equal(slices[3, 0], volume[1, 0, :, positions[1, 1]])


def test_the_video_discriminator_sees_the_whole_patch():
    volume = torch.randn(1, 1, 8, 8, 8)
    assert discriminator_views(volume, draw_positions(volume.shape, 0, 0), "video")[0] is volume
