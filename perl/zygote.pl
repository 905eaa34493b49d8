#!/usr/bin/perl
# The zygote: a Perl process with the operator's modules loaded, from which
# sites are forked (docs/reference/zygote-protocol.md). It holds nothing of a
# tenant and nothing secret.

use v5.36;
# In the order that keeps pages shared (Serai::Warm): what others made, then what
# runs in every site, then the rest.
use Serai::Warm;
use Serai::Override;
use Cwd ();
use Errno ();
use Fcntl ();
use IO::Handle;
use PerlIO::scalar;
use POSIX ();
use Scalar::Util ();
use Socket ();
use Serai::Sys;
use Serai::Launch;
use Serai::Site;
use Serai::Worker;
use Serai::Reply;
use Serai::PSGI;
use Serai::Loaded;
use Serai::Watch;
use Serai::Scripts;
use Serai::Rehearsal;
use B ();
use IO::File ();
use lib ();

use constant { CONTROL => 3, USER_NS => 4, MOUNT_NS => 5, FILTER => 6 };
use constant PATIENCE => 0.02;    # seconds

exit main();

sub main {
    my ($first) = Serai::Sys::receive(CONTROL, 1 << 17) or return 0;
    my %config = (module => []);
    my @fields = unpack '(N/a*)*', $first;
    shift(@fields) eq 'op' && shift(@fields) eq 'config' or die "the first message is not config\n";
    while (my ($name, $value) = splice @fields, 0, 2) {
        ref $config{$name} ? push @{ $config{$name} }, $value : ($config{$name} = $value);
    }
    my $program = leave_root($config{uid} + 0);

    # From here on this is a process of the reserved uid.
    $0 = "serai zygote $config{set}";
    %ENV = (PATH => '/usr/local/bin:/usr/bin:/bin', LANG => 'C.UTF-8');
    # Of a page of 2 MiB a child would copy all for a byte that it writes.
    Serai::Sys::small_pages();
    Serai::Warm::rehearse();
    my @report = load(@{ $config{module} });
    push @report, map { (broken => $_) } Serai::Rehearsal::run(grep { loaded($_) } @{ $config{module} });
    Serai::Warm::fill();
    Serai::Warm::rehearse();
    answer(op => 'up', @report);

    # One child is always a step ahead: it takes the next order off the control
    # socket, so that nothing of a tenant comes into this process. It says when
    # it has one; the pipe ends when the site is on its own. That is waited for,
    # as a fork beside it would slow the site down, but not for long: a tenant
    # that has used up its CPU must not hold up the others.
    $SIG{CHLD} = 'IGNORE';    # children are taken up by the kernel
    while (1) {
        my ($news, $taken) = POSIX::pipe() or die "pipe: $!\n";
        my $pid = CORE::fork // die "fork: $!: the zygote cannot make a process\n";
        if (!$pid) { POSIX::close($news); Serai::Launch::spare(CONTROL, $taken, $program, $config{uid} + 0) }
        POSIX::close($taken);
        (POSIX::read($news, my $word, 1) // 0) > 0 or last;    # it ended without an order
        vec(my $end = '', $news, 1) = 1;
        select $end, undef, undef, PATIENCE;
        POSIX::close($news);
    }
    POSIX::_exit(0);
}

# leave_root enters the tenants' namespaces and gives up kuid 0. It returns the
# seccomp program.
sub leave_root ($uid) {
    die "the reserved uid is $uid\n" if $uid <= 0;
    my $program = '';
    while (POSIX::read(FILTER, my $part, 65536) > 0) { $program .= $part }
    die "the seccomp program has " . length($program) . " bytes\n" if !length $program || length($program) % 8;
    Serai::Sys::setns(USER_NS, Serai::Sys::CLONE_NEWUSER);
    Serai::Sys::setns(MOUNT_NS, Serai::Sys::CLONE_NEWNS);
    Serai::Sys::set_groups();
    Serai::Sys::set_gid($uid);
    Serai::Sys::set_uid($uid);
    die "root can be taken again\n" if Serai::Sys::try('setresuid', 0, 0, 0) != -1;
    POSIX::close($_) for USER_NS, MOUNT_NS, FILTER;
    umask 022;
    chdir '/';
    return $program;
}

# load loads modules, and says which are missing or broken.
sub load (@modules) {
    my @report;
    for my $module (@modules) {
        my $file = file_of($module);
        if ($module !~ /\A\w+(?:::\w+)*\z/) { push @report, broken => "$module: no name of a module"; next }
        next if eval { require $file; 1 };
        my $why = $@;
        if ($why =~ /\ACan't locate \Q$file\E in \@INC/) { push @report, missing => $module; next }
        push @report, broken => "$module: " . ($why =~ /\A(.*)/ ? substr $1, 0, 500 : 'died');
    }
    return @report;
}

sub file_of ($module) { return "$module.pm" =~ s{::}{/}gr }
sub loaded ($module) { return $INC{ file_of($module) } }

sub answer (@fields) {
    open my $control, '+<&=', POSIX::dup(CONTROL) or die "the control socket: $!\n";
    send $control, pack('(N/a*)*', @fields), 0 or die "answer: $!\n";
}
