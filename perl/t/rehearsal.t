# The rehearsals of the frameworks: they work, and leave nothing behind.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/..";
use Serai::Override;

# Random numbers that are drawn: by rand, and from a generator that Dancer2 takes
# for session ids where it is installed.
my $drawn;
BEGIN {
    *CORE::GLOBAL::rand = sub :prototype(;$) { $drawn++; CORE::rand($_[0] // 1) };
    $INC{'Math/Random/ISAAC/XS.pm'} = $INC{'Crypt/URandom.pm'} = __FILE__;
    *Math::Random::ISAAC::XS::new = sub { $drawn++; bless [] };
    *Math::Random::ISAAC::XS::irand = sub { $drawn++ };
    *Crypt::URandom::urandom = sub ($n) { $drawn++; 'r' x $n };
}
use POSIX ();
use Test::More;
use Serai::Rehearsal;

# in_child returns what a child prints: a framework cannot be unloaded.
sub in_child ($do) {
    my $pid = open(my $from, '-|') // die "fork: $!";
    if (!$pid) {
        print $do->();
        close STDOUT;
        POSIX::_exit(0);
    }
    local $/;
    return readline($from) // '';
}

sub descriptors { opendir my $dir, '/proc/self/fd' or die "$!"; return join ' ', sort grep { /\d/ } readdir $dir }

my %replies = (
    CGI => '',
    Catalyst => '200 200 404 302',
    Dancer2 => '200 200 302 200 404 404 200',
    Mojolicious => '200 200 200 404 302',
);
is_deeply [sort keys %replies], [sort keys %Serai::Rehearsal::OF], 'all are tested';
for my $module (sort keys %replies) {
    my $ask = \&Serai::Rehearsal::ask;
    is in_child(sub {
        eval "require $module; 1" or return $@;
        my ($fds, $env, $sig, @status) = (descriptors(), join("", map { $_ // "" } %ENV), join("", map { $_ // "" } values %SIG));
        no warnings 'redefine';
        local *Serai::Rehearsal::ask = sub { my $reply = &$ask; push @status, $reply->[0]; $reply };
        $drawn = 0;
        my @failed = Serai::Rehearsal::run('No::Such', $module);
        return join "\n", "@status", @failed, ($drawn ? "$drawn random numbers were drawn" : ()), (descriptors() eq $fds ? () : 'descriptors are left'),
            (join("", map { $_ // "" } %ENV) eq $env ? () : 'the environment changed'), (join("", map { $_ // "" } values %SIG) eq $sig ? () : 'signals changed');
    }), $replies{$module}, "$module: the rehearsal works";
}

is in_child(sub {
    local $Serai::Rehearsal::OF{Broken} = 'die "on purpose\n";';
    return join '|', Serai::Rehearsal::run('Broken');
}), 'Broken: its rehearsal died: on purpose ', 'one that dies is told of';

is in_child(sub {
    require Dancer2;
    Serai::Rehearsal::run('Dancer2');
    return defined Dancer2->runner ? 'known' : 'forgotten';
}), 'forgotten', 'Dancer2 has forgotten the application that was rehearsed';

done_testing;
